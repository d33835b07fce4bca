# docker build -t jieyue . && docker run --rm -it -v "$PWD:/data" jieyue jieyue doctor
# CPU only. Not run yet: written where no Docker engine was at hand.
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY src src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends libtcmalloc-minimal4 && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu
COPY requirements/constraints.txt /tmp/constraints.txt
COPY --from=build /wheels /wheels
RUN grep -v -i '^torch==' /tmp/constraints.txt > /tmp/tested.txt \
    && wheel="$(ls /wheels/jieyue-*.whl)" \
    && pip install --no-cache-dir --constraint /tmp/tested.txt "${wheel}[serve]" \
    && rm -rf /tmp/constraints.txt /tmp/tested.txt /wheels
RUN useradd --create-home user
USER user
WORKDIR /data
CMD ["jieyue", "--help"]
