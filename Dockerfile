# One image for Ray's head, its workers and the exporter beside them: on Kubernetes they differ by
# command alone. docs/operations/container.md says how to build and run it.
#
#   docker build -t winnow --build-arg TORCH_INDEX=… .
#   docker build -t winnow:cuda --build-arg COMPUTE=cuda .

# Name it with its digest (python:3.11-slim-bookworm@sha256:…) to get the same base each time.
ARG BASE=python:3.11-slim-bookworm


FROM ${BASE} AS build

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# cpu or cuda.
ARG COMPUTE=cpu
# For cpu: the index with torch's build without CUDA, whose address PyTorch's installation page gives.
# `default` is pip's own index, which mostly has the build with CUDA: gigabytes more.
ARG TORCH_INDEX=""
# pip's default index, where yours is a mirror.
ARG PIP_INDEX_URL
# More packages: "s3fs" or "gcsfs" where store.blobs_url is a bucket.
ARG EXTRA_PACKAGES=""

# pip lives in a venv of its own, so that the image is left without one.
WORKDIR /build
RUN python3 -m venv /build/tools \
 && /build/tools/bin/pip install hatchling==1.33.0 \
 && python3 -m venv --without-pip /opt/winnow
COPY pyproject.toml constraints.txt constraints-cuda.txt ./
ENV INSTALL="/build/tools/bin/pip --python /opt/winnow/bin/python install --no-compile --only-binary :all: --constraint constraints.txt"

# Dependencies before the code: a change of code does not install them again. Wheels alone: nothing
# is compiled here, and no package runs code while it is installed.
RUN tools/bin/python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['dependencies'], *project['optional-dependencies']['postgres'], sep='\n')" >requirements.txt \
 && case "$COMPUTE" in \
      cpu) case "$TORCH_INDEX" in \
             "") echo "COMPUTE=cpu needs TORCH_INDEX: see docs/operations/container.md" >&2; exit 1 ;; \
             default) $INSTALL --no-deps torch ;; \
             *) $INSTALL --no-deps --index-url "$TORCH_INDEX" torch ;; \
           esac ;; \
      cuda) sed -i 's/^onnxruntime\b.*/onnxruntime-gpu/' requirements.txt \
         && cat constraints-cuda.txt >>constraints.txt ;; \
      *) echo "COMPUTE=$COMPUTE: must be cpu or cuda" >&2; exit 1 ;; \
    esac \
 && echo "$EXTRA_PACKAGES" | xargs -n1 >>requirements.txt \
 && $INSTALL --requirement requirements.txt

COPY README.md LICENSE ./
COPY models models
COPY service service
RUN tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
 && $INSTALL --no-deps dist/*.whl

# What no process here reads: tests, C++ headers and tools, Ray's Java and reinforcement learning.
# The headers stay with CUDA, for torch.compile. Bytecode is made now, since the image is read-only,
# and by content, so that the same build has the same bytes (a file of torch's is for Python 3.12).
WORKDIR /opt/winnow/lib/python3.11/site-packages
RUN rm -rf torch/test onnx/backend/test ray/jars ray/rllib \
 && find torch/bin -type f ! -name torch_shm_manager -delete \
 && if [ "$COMPUTE" = cpu ]; then rm -rf torch/include torch/share; fi \
 && find . -type d -name tests -prune -exec rm -rf {} + \
 && find . -type f \( -name '*.a' -o -name '*.pyi' -o -name '*.pxd' -o -name '*.cpp' \) -delete \
 && /opt/winnow/bin/python -m compileall -q -j 0 -x py312 --invalidation-mode unchecked-hash .


FROM ${BASE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ARG COMPUTE=cpu

# KubeRay's probes call wget. tini reaps what Ray leaves behind and passes signals on. With CUDA,
# Triton compiles its launchers, for torch.compile.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends tini wget \
 && if [ "$COMPUTE" = cuda ]; then apt-get install -y --no-install-recommends gcc libc6-dev; fi \
 && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/ldconfig/aux-cache \
 && groupadd --gid 1000 winnow \
 && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash winnow \
 && install -d -o winnow -g winnow -m 0700 /var/lib/winnow \
# Login shells set a PATH of their own.
 && echo "PATH=/opt/winnow/bin:\$PATH" >/etc/profile.d/winnow.sh

COPY --from=build /opt/winnow /opt/winnow
# The libraries that come with torch are ONNX Runtime's too.
RUN if [ "$COMPUTE" = cuda ]; then \
      find /opt/winnow/lib/python3.11/site-packages/nvidia -type d -name lib \
        >/etc/ld.so.conf.d/winnow.conf && ldconfig; \
    fi
COPY deploy/compose/winnow.yaml /etc/winnow/winnow.yaml

# State lies in /var/lib/winnow, a volume. ONNX Runtime would report to its maker, Ray to its own.
# Ray's other variables: see service/cluster/ray_environment.py and decisions 16 and 18; KubeRay starts Ray
# without it.
ENV PATH=/opt/winnow/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/home/winnow \
    XDG_STATE_HOME=/var/lib \
    OMP_WAIT_POLICY=passive \
    ORT_DISABLE_TELEMETRY=1 \
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0 \
    RAY_BACKEND_LOG_LEVEL=warning \
    RAY_ROTATION_BACKUP_COUNT=2 \
    RAY_ROTATION_MAX_BYTES=10485760 \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_agent_register_timeout_ms=180000 \
    RAY_gcs_server_port_wait_time_s=180 \
    RAY_worker_niceness=0 \
    RAY_worker_register_timeout_seconds=180

ARG VERSION=0.1.0.dev0
ARG REVISION=""
LABEL org.opencontainers.image.title="Winnow" \
      org.opencontainers.image.description="Serves a diffusion model and keeps malign images from leaving." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="python:3.11-slim-bookworm" \
      io.winnow.compute="${COMPUTE}"

# By number, so that Kubernetes' runAsNonRoot can see that it is not root.
USER 1000:1000
WORKDIR /opt/winnow
EXPOSE 8000 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
  CMD ["wget", "--quiet", "--tries=1", "--timeout=4", "--output-document=/dev/null", "http://127.0.0.1:8000/health/ready"]
ENTRYPOINT ["tini", "--"]
CMD ["winnow", "serve", "/etc/winnow/winnow.yaml"]
