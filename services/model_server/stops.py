"""Stop strings over streamed text.

Stop strings are matched against detokenised text, so a stop string that is spread over several tokens is found
as surely as one inside a single token. The outcome depends on the text alone, never on how it was cut.
"""

from __future__ import annotations

from collections.abc import Sequence

from shared import errors

MAX_STOPS = 16
MAX_STOP_LENGTH = 128


class StopScanner:
    """Cuts a stream of text before the first stop string.

    The stop string that ends first wins; of those that end together, the longest. Text is held back only while
    it could still be the start of a stop string. Each stop string is followed by the Knuth-Morris-Pratt
    automaton (Knuth, Morris and Pratt 1977), so the work is linear in the text whatever it holds.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Watch for `stops`; raises `InvalidArgument` for an empty, overlong or surplus one."""
        if len(stops) > MAX_STOPS:
            raise errors.InvalidArgument(f"at most {MAX_STOPS} stop strings are accepted", field="stop")
        if not all(0 < len(stop) <= MAX_STOP_LENGTH for stop in stops):
            raise errors.InvalidArgument(f"a stop string has 1 to {MAX_STOP_LENGTH} characters", field="stop")
        self._automata = [(stop, _failures(stop)) for stop in stops]
        self._matched = [0] * len(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Return what can be released now that `text` has arrived: nothing more once `stopped` is true."""
        if self.stopped:
            return ""
        buffer = self._held + text
        for end in range(len(self._held), len(buffer)):
            longest = self._step(buffer[end])
            if longest:
                self.stopped = True
                self._held = ""
                return buffer[: end + 1 - longest]
        keep = max(self._matched, default=0)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep]

    def finish(self) -> str:
        """Return what was held back; callers MUST call this once, when the text ended without a stop string."""
        held, self._held = self._held, ""
        return held

    def _step(self, character: str) -> int:
        """Advance every automaton; return the length of the longest stop string that ends here, or 0."""
        longest = 0
        for index, (stop, failures) in enumerate(self._automata):
            matched = self._matched[index]
            while matched and stop[matched] != character:
                matched = failures[matched - 1]
            if stop[matched] == character:
                matched += 1
            if matched == len(stop):
                longest = max(longest, matched)
            else:
                self._matched[index] = matched
        return longest


def _failures(pattern: str) -> list[int]:
    """Return, for each prefix of `pattern`, the length of its longest proper border."""
    table = [0] * len(pattern)
    border = 0
    for index in range(1, len(pattern)):
        while border and pattern[border] != pattern[index]:
            border = table[border - 1]
        if pattern[border] == pattern[index]:
            border += 1
        table[index] = border
    return table
