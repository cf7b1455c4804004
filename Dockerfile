# The service in a container: docker build -t convnext . && docker run --rm -p 8000:8000 -v "$PWD/runs/demo:/models:ro" convnext
# It runs as any user without a home, on a read-only root; only /tmp is written. For NVIDIA GPUs:
# docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 -t convnext .
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/convnext && /opt/convnext/bin/pip install --no-cache-dir torch torchvision --index-url ${TORCH_INDEX}
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md LICENSE CHANGELOG.md ./
COPY convnext convnext
# The fast operators are compiled here, for all kinds of x86-64 CPUs; the image itself has no compiler.
RUN /opt/convnext/bin/pip install --no-cache-dir '.[serve,export]'

FROM python:${PYTHON}-slim
COPY --from=build /opt/convnext /opt/convnext
ENV PATH=/opt/convnext/bin:$PATH PYTHONDONTWRITEBYTECODE=1 CONVNEXT_CACHE=/tmp/convnext HF_HOME=/tmp/huggingface
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["convnext"]
CMD ["serve", "/models", "--host", "0.0.0.0"]
