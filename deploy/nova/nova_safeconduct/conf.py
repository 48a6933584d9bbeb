"""Options of the section [safeconduct] of nova.conf."""

import itertools

from oslo_config import cfg

GROUP = cfg.OptGroup(
    'safeconduct',
    title='Safeconduct',
    help="""
Live migration under mutually attested enclaves. These options are read by
nova-compute when ``[DEFAULT] compute_driver`` is
``safeconduct.SafeconductDriver``.
""")

OPTS = [
    cfg.StrOpt(
        'endpoint',
        default='unix:///run/safeconduct/node.sock',
        regex=r'^unix:(//)?/',
        help="""
gRPC target of this host's node service (``safeconductd``): its unix socket.

The user that nova-compute runs as must be able to open the socket, and be
listed under ``local.callers`` in the node service's configuration for
``MigrationService``, ``SecretService`` and ``AdminService/GetStatus``.
"""),
    cfg.StrOpt(
        'mode',
        default='intel',
        choices=[
            ('intel', 'Intel SGX hardware.'),
            ('simulated', 'A simulated enclave, which protects nothing; for '
                          'development and tests only.'),
        ],
        help="""
Mode that the node service of this host must be in.

A node service in the other mode is not used: servers with a vTPM are then
not migrated. Nothing falls back from one mode to the other.
"""),
    cfg.StrOpt(
        'policy',
        default='required',
        choices=[
            ('required', 'A server that is to be protected is not migrated '
                         'without protection.'),
            ('preferred', 'A server without a vTPM that cannot be protected '
                          'is migrated without protection, and a warning is '
                          'logged.'),
        ],
        help="""
What happens to a live migration that cannot be protected, because the other
host has no Safeconduct or does not pass its appraisal.

A server with a vTPM is refused under either policy.

Related options:

* ``[safeconduct] instances``: which servers are to be protected
"""),
    cfg.StrOpt(
        'instances',
        default='vtpm',
        choices=[
            ('vtpm', 'Servers with a vTPM.'),
            ('all', 'Every server.'),
        ],
        help="""
Which servers are to be protected when they are live-migrated.

With ``all``, servers without a vTPM too are migrated only between hosts that
have attested each other (see ``[safeconduct] policy``), and their memory
crosses in the tunnel if ``[safeconduct] tunnel`` is on.
"""),
    cfg.BoolOpt(
        'tunnel',
        default=False,
        help="""
Carry the whole migration stream of protected servers (memory, storage, vTPM)
through ``safeconduct-tunnel``, encrypted under keys of the attested session.

Without it the state and the secret of the vTPM are protected, and the
server's memory crosses as it does without Safeconduct: in clear, unless
``[libvirt] live_migration_with_native_tls`` is on. ``safeconduct-tunnel`` must
run on both hosts.

Related options:

* ``[safeconduct] tunnel_directory``
* ``[libvirt] live_migration_inbound_addr``: its address is not used for the
  stream while the tunnel is on, only for libvirt's own connection
"""),
    cfg.StrOpt(
        'tunnel_directory',
        default='/run/safeconduct/tunnel',
        regex='^/',
        help="""
Directory of the sockets of ``safeconduct-tunnel``: ``dir`` in its
configuration. It is the same on every host.
"""),
    cfg.IntOpt(
        'request_timeout',
        default=10, min=1, max=600,
        help="""
Seconds that one call of the node service may take, waiting for its turn
included.

Establishing and arming a session, which ask the other host, have options of
their own.
"""),
    cfg.IntOpt(
        'establish_timeout',
        default=60, min=1, max=600,
        help="""
Seconds that it may take to attest the other host, exchange integrity logs and
derive keys.

It should be longer than ``peer.handshake_timeout`` in the node service's
configuration (20 seconds by default) and shorter than ``[DEFAULT]
long_rpc_timeout``.
"""),
    cfg.IntOpt(
        'arm_timeout',
        default=30, min=1, max=600,
        help="""
Seconds that it may take to bind an attested session to a migration, which
includes a new appraisal of both hosts if the last one has grown old.
"""),
    cfg.IntOpt(
        'max_calls',
        default=8, min=1, max=100,
        help="""
Calls of the node service that are made at once; more wait for their turn.

Under eventlet each call takes one of the threads that nova-compute also calls
libvirt in (20, unless ``EVENTLET_THREADPOOL_SIZE`` says otherwise), so this
number must be well below theirs.
"""),
]


def register_opts(conf):
    conf.register_group(GROUP)
    conf.register_opts(OPTS, group=GROUP)


def list_opts():
    """For oslo-config-generator (namespace nova_safeconduct)."""
    return [(GROUP, itertools.chain(OPTS))]
