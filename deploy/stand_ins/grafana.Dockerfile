# In place of grafana/grafana, where no registry can be reached: only answers the health check, draws nothing.
# See ../compose_test.py, which asks Prometheus each panel's query itself.
FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
 && mkdir -p /answers/api && echo '{"database": "ok"}' > /answers/api/health
USER 472
CMD ["python", "-m", "http.server", "--directory", "/answers", "3000"]
