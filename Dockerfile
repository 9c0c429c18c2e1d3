# Two stages: what builds stays behind. What runs has no torch, no compiler, no cache and no right to write.
# No `# syntax=` line: it would ask a registry for a front end that this file does not need.

FROM python:3.11-slim-bookworm AS build
WORKDIR /build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1 PIP_CONSTRAINT=/build/constraints.txt
RUN python -m venv --without-pip /opt/cellstream

# Dependencies first, from pyproject.toml alone: this layer is made anew only when they change.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
      print(*project['dependencies'], *project['optional-dependencies']['serve'], sep='\n')" > requirements.txt \
 && python -m pip --python /opt/cellstream/bin/python install --requirement requirements.txt

COPY README.md LICENSE ./
COPY service service
# Bytecode now and never checked again: the root of what runs is read-only, and the health check starts a
# Python every few seconds.
RUN python -m pip --python /opt/cellstream/bin/python install --no-deps . \
 && python -m compileall -q --invalidation-mode unchecked-hash /opt/cellstream/lib


FROM python:3.11-slim-bookworm
# The official image leaves out the standard library's bytecode, which each start would make and throw away.
RUN python -c "import compileall, py_compile, re, sysconfig; \
      compileall.compile_dir(sysconfig.get_path('stdlib'), quiet=2, \
        rx=re.compile('site-packages|dist-packages|lib2to3|idlelib|turtledemo|/test/'), \
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)" \
 && groupadd --system --gid 10001 cellstream \
 && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent \
      --shell /usr/sbin/nologin cellstream
COPY --from=build /opt/cellstream /opt/cellstream
COPY models /models
ENV PATH=/opt/cellstream/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    CELLSTREAM_HOST=0.0.0.0 \
    CELLSTREAM_METRICS_HOST=0.0.0.0 \
    CELLSTREAM_LOG_FORMAT=json \
    CELLSTREAM_MODELS=/models \
    CELLSTREAM_DEFAULT_MODEL=shakespeare-lstm
USER 10001:10001
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
# Without a target it asks the server of this environment, on its port and with its certificate.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["cellstream", "health"]
ENTRYPOINT ["cellstream"]
CMD ["serve"]
