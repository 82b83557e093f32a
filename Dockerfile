# The worker. No cache, no build tool and no pip stays in the image.
FROM python:3.13-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY constraints.txt pyproject.toml ./
RUN python -m venv tools \
 && tools/bin/pip install --quiet --constraint constraints.txt pip build hatchling \
 && python -m venv --without-pip /opt/outplan
# The dependencies first: they stay as they are while the code changes.
RUN tools/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" >requirements.txt \
 && tools/bin/pip --python /opt/outplan/bin/python install --quiet --constraint constraints.txt --requirement requirements.txt
COPY LICENSE README.md ./
COPY schemas schemas
COPY service service
RUN tools/bin/python -m build --wheel --no-isolation --outdir . \
 && tools/bin/pip --python /opt/outplan/bin/python install --quiet --no-deps ./*.whl

FROM python:3.13-slim
COPY --from=build /opt/outplan /opt/outplan
ENV PATH=/opt/outplan/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 8080
# Not urllib: it would go through a proxy that the environment names.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["python", "-c", "import os, sys; from http.client import HTTPConnection; c = HTTPConnection('127.0.0.1', int(os.environ.get('OUTPLAN_HTTP_PORT', '8080')), timeout=4); c.request('GET', '/livez'); sys.exit(c.getresponse().status != 200)"]
CMD ["outplan", "run"]
