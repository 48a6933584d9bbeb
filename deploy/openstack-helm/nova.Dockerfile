# Nova's image with Safeconduct's driver. Build it from the root of this repository, on the image of Nova that your cloud runs:
#
#   docker build -f deploy/openstack-helm/nova.Dockerfile --build-arg BASE=quay.io/airshipit/nova@sha256:... --build-arg SERIES=34 .
#
# BASE has no default: a digest is yours to choose and to pin. SERIES is a directory of deploy/nova/patches, the one of BASE's release. Not built here: there is
# no container engine where this was written.
ARG BASE
FROM ${BASE}
ARG SERIES
USER root
COPY deploy/nova /tmp/safeconduct
# The images of openstack-helm have Nova in this virtual environment; give another one for others.
ARG VENV=/var/lib/openstack
RUN set -eu; \
    ${VENV}/bin/pip install --no-cache-dir grpcio protobuf; \
    ${VENV}/bin/pip install --no-cache-dir --no-deps /tmp/safeconduct; \
    cd "$(${VENV}/bin/python -c 'import nova.compute, os; print(os.path.dirname(os.path.dirname(os.path.dirname(nova.compute.__file__))))')"; \
    ${VENV}/bin/python -c 'import nova_safeconduct.driver'; \
    patch -p1 --forward </tmp/safeconduct/patches/${SERIES}/vtpm-live-migration.patch; \
    rm -rf /tmp/safeconduct
USER 42424
