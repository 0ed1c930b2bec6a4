"""Text inspection: what a text holds, and how to let it out a piece at a time without letting out what it must not.

Pure and synchronous. Detectors report facts (`findings.Finding`); policy says what each kind means.
"""
