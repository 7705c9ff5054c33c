"""Metrics for Prometheus. Their names and meanings stand in docs/serve.md."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from ppd.runtime import Result

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """What one server counts, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "ppd_requests", "Requests by path and status of the answer.", ["path", "status"], registry=registry
        )
        self.waiting = Gauge("ppd_requests_waiting", "Requests whose turn has not come.", registry=registry)
        self.running = Gauge("ppd_requests_running", "Requests that are being answered.", registry=registry)
        self.slots = Gauge("ppd_slots_held", "Conversations whose caches are kept.", registry=registry)
        self.gone = Counter("ppd_requests_gone", "Answers stopped because their clients went away.", registry=registry)
        self.queue_s = Histogram(
            "ppd_queue_seconds", "Time until a request's turn.", buckets=_SECONDS, registry=registry
        )
        self.first_token_s = Histogram(
            "ppd_first_token_seconds",
            "Time from a request's turn to its first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.answer_s = Histogram(
            "ppd_answer_seconds", "Time of prefill and of all steps.", buckets=_SECONDS, registry=registry
        )
        self.prompt_tokens = Counter("ppd_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.reused_tokens = Counter("ppd_reused_tokens", "Of these, tokens that a slot held.", registry=registry)
        self.tokens = Counter("ppd_generated_tokens", "Tokens of answers.", registry=registry)
        self.steps = Counter("ppd_steps", "Steps by whose guesses they verified.", ["source"], registry=registry)
        self.step_tokens = Counter(
            "ppd_step_tokens", "Tokens that those steps gave; by ppd_steps it is τ.", ["source"], registry=registry
        )

    def count(self, result: Result) -> None:
        """Count a whole answer."""
        stats = result.stats
        self.first_token_s.observe(stats.prefill_ms / 1e3)
        self.answer_s.observe((stats.prefill_ms + stats.decode_ms) / 1e3)
        self.prompt_tokens.inc(stats.prompt_tokens)
        self.reused_tokens.inc(stats.reused_tokens)
        self.tokens.inc(len(result.token_ids))
        for source, (steps, right) in stats.by_source.items():
            self.steps.labels(source).inc(steps)
            self.step_tokens.labels(source).inc(steps + right)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)
