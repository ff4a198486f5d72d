# The API alone, on a processor or a GPU: `docker compose up`, or `docker compose --profile gpu up moescope-gpu`.
FROM debian:bookworm-slim

RUN apt-get update && apt-get install -y --no-install-recommends python3.11 python3.11-venv && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home moescope && install -d -o moescope -g moescope /data /data/checkpoints /data/logs /data/cache
RUN python3.11 -m venv /opt/moescope
ENV PATH=/opt/moescope/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1

# Torch from the usual index runs on both, and brings two GB of CUDA along. An index of its processor-only wheels makes
# the image small: --build-arg TORCH_INDEX=URL.
ARG TORCH_INDEX=""
WORKDIR /opt/source
COPY requirements.txt requirements-huggingface.txt requirements-serve.txt ./
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' requirements.txt)"
RUN pip install -r requirements-huggingface.txt -r requirements-serve.txt
COPY pyproject.toml README.md LICENSE main.py ./
COPY moe_core moe_core
COPY app app
COPY data_gen data_gen
RUN pip install --no-deps .

USER moescope
WORKDIR /data
ENV CONDOR_HOST=0.0.0.0 CONDOR_PORT=8001 CONDOR_LOG_DIR=/data/logs \
    MOESCOPE_CHECKPOINTS=/data/checkpoints MOESCOPE_CACHE=/data/cache OMP_WAIT_POLICY=PASSIVE \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 8001
# 200 once the model is open.
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['CONDOR_PORT'] + '/health', timeout=4)"]
ENTRYPOINT ["moescope"]
CMD ["serve"]
