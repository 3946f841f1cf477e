"""Build the PromQL of panels. Grafana replaces `$instance`, `$variant` and `$__rate_interval`."""

from deploy.grafana.model import Variable

PREFIX = "speakerlens_"
JOB = "speakerlens"
INSTANCE = 'instance=~"$instance"'
VARIANT = 'variant=~"$variant"'
# The same Prometheus may have alerts of other services.
FIRING = 'ALERTS{alertstate="firing", alertname=~"Speakerlens.*"}'
VARIABLES = (
    Variable("instance", "Instance", "speakerlens_engine_info"),
    Variable("variant", "Variant", f"speakerlens_model_info{{{INSTANCE}}}"),
)


def select(metric: str, *matchers: str) -> str:
    """Return a selector of a server's metric, named without its prefix, on the chosen instances."""
    return f"{PREFIX}{metric}{{{', '.join((INSTANCE, *matchers))}}}"


def total(expression: str, by: str = "") -> str:
    """Return the sum over all labels but those in `by`."""
    return f"sum by ({by}) ({expression})" if by else f"sum({expression})"


def per_second(counter: str, *matchers: str, by: str = "") -> str:
    """Return the rate of a counter, per second."""
    return total(f"rate({select(counter, *matchers)}[$__rate_interval])", by)


def quantile(level: float, histogram: str, *matchers: str, by: str = "") -> str:
    """Return a quantile of a histogram over the rate interval."""
    buckets = per_second(f"{histogram}_bucket", *matchers, by=f"le, {by}" if by else "le")
    return f"histogram_quantile({level:g}, {buckets})"


def mean(histogram: str, *matchers: str, by: str = "") -> str:
    """Return the mean of a histogram over the rate interval."""
    parts = (per_second(f"{histogram}_{part}", *matchers, by=by) for part in ("sum", "count"))
    return " / ".join(parts)


def buckets(histogram: str, *matchers: str) -> str:
    """Return the counts by bucket over the rate interval, for heatmaps."""
    return f"sum by (le) (increase({select(f'{histogram}_bucket', *matchers)}[$__rate_interval]))"


def or_none(expression: str, label: str) -> str:
    """Return the expression, or one series of value 0 whose label is `none` where the expression has no series."""
    return f'{expression} or on() label_replace(vector(0), "{label}", "none", "", "")'


def or_zero(expression: str) -> str:
    """Return the expression, or 0 without labels where it has no series; for totals."""
    return f"({expression} or vector(0))"
