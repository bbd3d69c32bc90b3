"""The sentiment analyzer of seed 003: a custom Runnable that no model store knows."""

import re
from statistics import mean

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

import adapter
from adapter.io import JSON, Text


class SentimentRunnable(adapter.Runnable):
    """Scores each sentence of a text with a lexicon; the text is positive where their mean is."""

    SUPPORT_NVIDIA_GPU = False
    SUPPORT_CPU_MULTI_THREADING = False

    def __init__(self) -> None:
        self.analyzer = SentimentIntensityAnalyzer()

    @adapter.Runnable.method(batchable=False)
    def is_positive(self, input_text: str) -> bool:
        sentences = [s for s in re.split(r"(?<=[.!?])\s+", input_text) if s] or [""]
        return bool(mean(self.analyzer.polarity_scores(s)["compound"] for s in sentences) > 0)


sentiment_runner = adapter.Runner(SentimentRunnable, name="sentiment")

svc = adapter.Service("sentiment_analyzer", runners=[sentiment_runner])


@svc.api(input=Text(), output=JSON())
def analysis(input_text: str) -> dict[str, bool]:
    """Tell whether an English text is positive."""
    is_positive: bool = sentiment_runner.is_positive.run(input_text)
    return {"is_positive": is_positive}
