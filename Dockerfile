# One image trains and serves. `docker build .`; behind a package mirror: `--secret id=pip,src=$HOME/.config/pip/pip.conf`.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
WORKDIR /build
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*

# The locked dependencies alone, so that an edit of the code does not install them again. `python -m venv --without-pip`:
# pip works on the environment from outside and does not end up in the image.
RUN python -m venv --without-pip /opt/venv && python -m venv /opt/hatch
# STORES=1 adds what stores on S3, Google Cloud Storage and Azure need.
ARG STORES=
COPY requirements/service.txt requirements/build.txt requirements/stores.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip,target=/root/.config/pip/pip.conf \
    python -m pip --python /opt/venv/bin/python install --require-hashes --no-compile -r requirements/service.txt \
        ${STORES:+-r requirements/stores.txt} \
    && /opt/hatch/bin/pip install --require-hashes --no-compile -r requirements/build.txt

# Then less of them, and bytecode of the rest: compiling at each start of a container, whose root file system is read-only,
# would cost ten seconds.
COPY deploy/slim.sh deploy/
RUN sh deploy/slim.sh /opt/venv && python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/venv/lib

COPY pyproject.toml README.md LICENSE ./
COPY service service
RUN /opt/hatch/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir dist . \
    && python -m pip --python /opt/venv/bin/python install --no-deps --no-index --no-compile dist/*.whl \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib/python*/site-packages/service

FROM python:${PYTHON_VERSION}-slim
LABEL org.opencontainers.image.title="autoencoder-service" \
      org.opencontainers.image.description="REST service for trained autoencoders: encode, reconstruct, denoise, score anomalies" \
      org.opencontainers.image.licenses="Apache-2.0"

# The numbers are fixed so that a mounted store can be given to this user. A new volume takes the owner of /model_store.
RUN groupadd --gid 10001 autoencoder \
    && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin autoencoder \
    && install -d -o autoencoder -g autoencoder -m 0755 /model_store
COPY --from=builder /opt/venv /opt/venv

# Everything that a library may want to write goes to /tmp: mount a tmpfs there and the root file system can be read-only.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 \
    HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib MPLBACKEND=Agg TF_CPP_MIN_LOG_LEVEL=2 \
    AUTOENCODER_STORE=/model_store AUTOENCODER_HOST=0.0.0.0 AUTOENCODER_PORT=8000
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM

# http.client and not urllib: a proxy of the environment must not be asked for 127.0.0.1.
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, os; connection = http.client.HTTPConnection('127.0.0.1', int(os.environ['AUTOENCODER_PORT']), timeout=4); connection.request('GET', '/readyz'); raise SystemExit(connection.getresponse().status != 200)"]

ENTRYPOINT ["autoencoder"]
CMD ["serve"]
