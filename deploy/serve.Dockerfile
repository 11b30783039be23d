# A server of rankings, without torch:
#   docker build -f deploy/serve.Dockerfile -t widedeep-serve .
#   docker run -p 8080:8080 -v /srv/models:/models widedeep-serve
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN python -m venv /opt/widedeep && /opt/widedeep/bin/pip wheel --no-deps -w /wheels /src
RUN /opt/widedeep/bin/pip install -c /src/constraints.txt "$(ls /wheels/*.whl)[serve]"

FROM python:3.12-slim
RUN useradd --system widedeep
COPY --from=build /opt/widedeep /opt/widedeep
USER widedeep
EXPOSE 8080
# exec form: SIGTERM reaches the server itself.
ENTRYPOINT ["/opt/widedeep/bin/widedeep", "serve"]
CMD ["/models", "--http", "0.0.0.0:8080", "--workers", "2", "--drain-delay", "5"]
