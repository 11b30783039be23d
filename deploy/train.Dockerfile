# Joins, trains, judges and publishes; the build of torch is the processor's own, without CUDA:
#   docker build -f deploy/train.Dockerfile --build-arg TORCH_INDEX=URL -t widedeep-train .
#   docker run -v /srv:/srv widedeep-train train /srv/ads.toml --out /srv/runs/today
# TORCH_INDEX is the index of CPU builds that PyTorch's installation page names; without it pip may
# bring the CUDA build, which is gigabytes larger.
FROM python:3.12-slim AS build
ARG TORCH_INDEX=
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN python -m venv /opt/widedeep && /opt/widedeep/bin/pip wheel --no-deps -w /wheels /src
RUN /opt/widedeep/bin/pip install ${TORCH_INDEX:+--index-url $TORCH_INDEX} "$(grep '^torch==' /src/constraints.txt)"
RUN /opt/widedeep/bin/pip install -c /src/constraints.txt "$(ls /wheels/*.whl)[train,join,publish]"

FROM python:3.12-slim
RUN useradd --system widedeep
COPY --from=build /opt/widedeep /opt/widedeep
USER widedeep
ENTRYPOINT ["/opt/widedeep/bin/widedeep"]
CMD ["doctor"]
