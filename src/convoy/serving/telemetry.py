"""Traces of requests by OpenTelemetry, where the extra `otel` is installed and OTEL_EXPORTER_OTLP_ENDPOINT names a collector."""

import os
from collections.abc import Callable

from convoy.core.errors import RequestError
from convoy.serving.middleware import App

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
SERVICE = "OTEL_SERVICE_NAME"


def traced(app: App) -> tuple[App, Callable[[], None]]:
    """Wrap the application, if a collector is named; return it with a function that sends what is left at the end.

    The other OTEL_ variables, such as OTEL_TRACES_SAMPLER, are read by OpenTelemetry itself.

    Raises:
        RequestError: the extra is not installed.
    """
    if not os.environ.get(ENDPOINT):
        return app, lambda: None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 (an extra that is not always installed)
            OTLPSpanExporter,
        )
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware  # noqa: PLC0415 (as above)
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415 (as above)
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 (as above)
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 (as above)
    except ImportError as error:
        raise RequestError(
            f"{ENDPOINT} is set, and OpenTelemetry is not installed ({error.name} is missing). Install the extra: "
            f"pip install 'convoy[otel]'; or unset {ENDPOINT}"
        ) from error
    resource = Resource.create({SERVICE_NAME: os.environ.get(SERVICE, "convoy")})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    wrapped = OpenTelemetryMiddleware(app, tracer_provider=provider, exclude_spans=["receive", "send"])
    return wrapped, provider.shutdown
