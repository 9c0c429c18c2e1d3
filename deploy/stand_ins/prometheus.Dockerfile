# Debian's Prometheus in place of prom/prometheus, where no registry can be reached; see ../compose_test.py.
FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install --yes --no-install-recommends prometheus wget && rm -rf /var/lib/apt/lists/* \
 && install --directory --owner=65534 --group=65534 /prometheus
USER 65534
ENTRYPOINT ["prometheus"]
