# captioner as a service: docker build -t captioner . && docker run -p 7860:7860 -e CAPTIONER_SERVE_KEY=… captioner
#
#   --build-arg DEVICE=cuda     for NVIDIA GPUs (run with --gpus all); the default, cpu, needs a fifth of the disk
#   --build-arg EXTRAS=all      what else of captioner is installed; web alone is what the service needs
#
# Where no engine runs, .ci/container.py does the same steps in a chroot, and tries what they make.
FROM python:3.11-slim-bookworm

ARG DEVICE=cpu
ARG EXTRAS=web
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

RUN useradd --create-home --uid 1000 captioner \
    && mkdir -p /cache/captioner /cache/huggingface \
    && chown -R captioner /cache

WORKDIR /src
COPY constraints.txt .
# torch changes less often than our own code, so it has a layer of its own. Its builds for the CPU alone lie apart.
RUN if [ "$DEVICE" = cpu ]; then \
      pip install --constraint constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu torch; \
    else \
      pip install --constraint constraints.txt torch; \
    fi
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY captioner captioner
COPY training training
COPY eval eval
RUN pip install --constraint constraints.txt ".[$EXTRAS]"

USER 1000
WORKDIR /home/captioner
ENV CAPTIONER_CACHE=/cache/captioner \
    HF_HOME=/cache/huggingface
VOLUME ["/cache"]
EXPOSE 7860
# Docker hands the proxies of its settings to containers, and none of them leads to the service.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", \
         "from urllib.request import *; build_opener(ProxyHandler({})).open('http://127.0.0.1:7860/health')"]
ENTRYPOINT ["captioner"]
CMD ["serve", "--host", "0.0.0.0", "--port", "7860"]
