"""How a protected migration is asked of libvirt."""

from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import host as libvirt_host


class _Domain:
    """A libvirt domain whose migrateToURI3 is changed on its way."""

    def __init__(self, domain, change):
        self._domain = domain
        self._change = change

    def __getattr__(self, name):
        return getattr(self._domain, name)

    def migrateToURI3(self, destination, params, flags):
        params, flags = self._change(dict(params), flags)
        return self._domain.migrateToURI3(destination, params=params,
                                          flags=flags)


def protected(guest, tunnel_sockets=None, destination=None):
    """The guest, with migrate() as protection needs it.

    Post-copy is off: once a destination that cannot restore the vTPM runs the
    guest, neither host can go on with it.

    :param tunnel_sockets: paths (stream, disks) of the tunnel; None: no tunnel
    :param destination: name of the destination, for TLS inside the tunnel
    """
    libvirt = libvirt_host.libvirt

    def change(params, flags):
        flags &= ~libvirt.VIR_MIGRATE_POSTCOPY
        if tunnel_sockets is not None:
            stream, disks = tunnel_sockets
            params['migrate_uri'] = 'unix://' + stream
            if flags & libvirt.VIR_MIGRATE_NON_SHARED_INC:
                params['disks_uri'] = 'unix://' + disks
            if flags & libvirt.VIR_MIGRATE_TLS:
                params['tls.destination'] = destination
        return params, flags

    return libvirt_guest.Guest(_Domain(guest._domain, change))
