# The production node service: the signed enclave, EGo's runtime, Intel's quote library. Build it with deploy/images/enclave.sh, which makes the context and
# accepts no base without a digest; docs/kubernetes.md says how. Not built here: there is no container engine and no EGo where this was written.
#
# BASE is EGo's own deploy image of v1.9.0, or any other that has EGo in PATH. It has no default: the digest is that of the image which you have looked at.
ARG BASE
FROM ${BASE}
# Intel's packages, whose digests enclave.sh has checked: libsgx-dcap-default-qpl and what it depends on. On Azure none: az-dcap-client is in EGo's image.
COPY packages/ /tmp/packages/
RUN set -eu; \
    if ls /tmp/packages/*.deb >/dev/null 2>&1; then dpkg --install /tmp/packages/*.deb; fi; \
    rm -rf /tmp/packages; \
    echo 'safeconduct:x:64061:64061:node service:/:/usr/sbin/nologin' >>/etc/passwd; \
    echo 'safeconduct:x:64061:' >>/etc/group
COPY LICENSE /usr/share/doc/safeconduct/LICENSE
COPY safeconduct /usr/bin/safeconduct
COPY safeconductd /usr/lib/safeconduct/safeconductd
COPY BUILD SIGNED /usr/share/doc/safeconduct/
USER 64061:64061
ENTRYPOINT ["ego", "run", "/usr/lib/safeconduct/safeconductd"]
