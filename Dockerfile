# The worker. The image has no cache, no build tool and no pip.
FROM python:3.13-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    PIP_CONSTRAINT=/build/constraints.txt PIP_BUILD_CONSTRAINT=/build/constraints.txt
WORKDIR /build
COPY constraints.txt pyproject.toml ./
RUN python -m venv tools \
 && tools/bin/pip install --quiet pip \
 && python -m venv --without-pip /opt/outplan
# Install the dependencies before copying the code, so that a change of code reuses their layer.
# The build backend wants the files to exist, even for the list of dependencies.
RUN mkdir -p schemas service/outplan \
 && touch LICENSE README.md service/outplan/__init__.py \
 && tools/bin/pip --python /opt/outplan/bin/python install --quiet --only-deps '.[worker]'
COPY LICENSE README.md ./
COPY schemas schemas
COPY service service
RUN tools/bin/pip --python /opt/outplan/bin/python install --quiet --no-deps .

FROM python:3.13-slim
COPY --from=build /opt/outplan /opt/outplan
ENV PATH=/opt/outplan/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 8080
# http.client, because urllib would use a proxy named in the environment.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["python", "-c", "import os, sys; from http.client import HTTPConnection; c = HTTPConnection('127.0.0.1', int(os.environ.get('OUTPLAN_HTTP_PORT', '8080')), timeout=4); c.request('GET', '/livez'); sys.exit(c.getresponse().status != 200)"]
CMD ["outplan", "run"]
