"""The PromQL that panels are made of. `$instance`, `$variant` and `$__rate_interval` are filled in by Grafana."""

from deploy.grafana.model import Variable

PREFIX = "speakerlens_"
JOB = "speakerlens"
INSTANCE = 'instance=~"$instance"'
VARIANT = 'variant=~"$variant"'
# A Prometheus may have alerts of others, too.
FIRING = 'ALERTS{alertstate="firing", alertname=~"Speakerlens.*"}'
VARIABLES = (
    Variable("instance", "Instance", "speakerlens_engine_info"),
    Variable("variant", "Variant", f"speakerlens_model_info{{{INSTANCE}}}"),
)


def select(metric: str, *matchers: str) -> str:
    """The series of one of the server's metrics, named without its prefix, on the chosen instances."""
    return f"{PREFIX}{metric}{{{', '.join((INSTANCE, *matchers))}}}"


def total(expression: str, by: str = "") -> str:
    """The sum over all labels but those in `by`."""
    return f"sum by ({by}) ({expression})" if by else f"sum({expression})"


def per_second(counter: str, *matchers: str, by: str = "") -> str:
    """How fast a counter grows."""
    return total(f"rate({select(counter, *matchers)}[$__rate_interval])", by)


def quantile(level: float, histogram: str, *matchers: str, by: str = "") -> str:
    """A quantile of what a histogram counted lately."""
    buckets = per_second(f"{histogram}_bucket", *matchers, by=f"le, {by}" if by else "le")
    return f"histogram_quantile({level:g}, {buckets})"


def mean(histogram: str, *matchers: str, by: str = "") -> str:
    """The mean of what a histogram counted lately."""
    parts = (per_second(f"{histogram}_{part}", *matchers, by=by) for part in ("sum", "count"))
    return " / ".join(parts)


def buckets(histogram: str, *matchers: str) -> str:
    """How many of what a histogram counted lately fell into each bucket; for heatmaps."""
    return f"sum by (le) (increase({select(f'{histogram}_bucket', *matchers)}[$__rate_interval]))"


def or_none(expression: str, label: str) -> str:
    """The expression, or where it has no series, one that is 0 and says `none`: nothing happened, and that is known."""
    return f'{expression} or on() label_replace(vector(0), "{label}", "none", "", "")'


def or_zero(expression: str) -> str:
    """The expression, or 0 where it has no series. Without labels, so for totals."""
    return f"({expression} or vector(0))"
