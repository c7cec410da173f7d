# The image of `convoy serve` (docs/serving.md, Containers).
#
#   docker build -t convoy .                                  the model of build/deploy inside
#   docker build -t convoy --build-arg MODEL=build/champion . another folder with a model.onnx
#   docker build -t convoy --target service .                 no model inside: -v "$PWD/build/deploy:/model:ro"
#   docker build -t convoy --target service --build-arg LOCK=requirements-registry.txt .   for `--model champion`
ARG PYTHON=3.13-slim-trixie

FROM python:${PYTHON} AS packages
ARG LOCK=requirements-serve.txt
COPY ${LOCK} /requirements.txt
RUN python -m venv --without-pip /opt/venv \
 && python -m pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check \
    --only-binary :all: --require-hashes -r /requirements.txt

FROM python:${PYTHON} AS service
RUN groupadd --gid 10001 convoy \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /srv/convoy --shell /usr/sbin/nologin convoy \
 && install -d -o 10001 -g 10001 /srv/convoy /srv/convoy/.cache
WORKDIR /srv/convoy
COPY --from=packages /opt/venv /opt/venv
COPY params.yaml ./
COPY src/ src/
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/srv/convoy/src \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    DO_NOT_TRACK=1 \
    MLFLOW_DISABLE_TELEMETRY=true
RUN python -m compileall -q src
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s --retries=3 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["python", "-m", "convoy", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--model", "/model/model.onnx"]

FROM service AS baked
ARG MODEL=build/deploy
COPY ${MODEL}/ /model/
