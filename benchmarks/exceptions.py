"""What goes wrong in a benchmark."""


class BenchmarkError(Exception):
    """A benchmark that cannot run, or that was answered wrongly; its message is one sentence for a person."""
