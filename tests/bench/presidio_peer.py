"""Pattern-only Presidio: `python presidio_peer.py`, run by a venv that has presidio-analyzer and nothing of ours.

Reads lines `{"text": ..., "scans": ...}` and prints the mean seconds of a scan for each.
"""

import json
import sys
import time

import tldextract
from presidio_analyzer import AnalyzerEngine, PatternRecognizer
from presidio_analyzer.nlp_engine import NlpArtifacts, NlpEngine

# Presidio's URL and e-mail recognisers would fetch the public suffix list.
OFFLINE = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
tldextract.extract = OFFLINE
tldextract.tldextract.TLD_EXTRACTOR = OFFLINE


class NoNlp(NlpEngine):
    """An engine that finds nothing, at no cost: Presidio cannot be made without one."""

    def load(self):
        """There is no model."""

    def is_loaded(self):
        return True

    def process_text(self, text, language):
        return NlpArtifacts(entities=[], tokens=[], tokens_indices=[], lemmas=[], nlp_engine=self, language=language)

    def process_batch(self, texts, language, **_):
        for text in texts:
            yield text, self.process_text(text, language)

    def is_stopword(self, word, language):
        return False

    def is_punct(self, word, language):
        return False

    def get_supported_entities(self):
        return []

    def get_supported_languages(self):
        return ["en"]


def main():
    analyzer = AnalyzerEngine(nlp_engine=NoNlp(), supported_languages=["en"])
    for recognizer in list(analyzer.registry.recognizers):
        if not isinstance(recognizer, PatternRecognizer):
            analyzer.registry.remove_recognizer(recognizer.name)
    for line in sys.stdin:
        question = json.loads(line)
        started = time.perf_counter()
        for _ in range(question["scans"]):
            analyzer.analyze(question["text"], language="en")
        sys.stdout.write(f"{(time.perf_counter() - started) / question['scans']}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
