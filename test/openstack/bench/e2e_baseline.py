"""For the bench only: servers named "unprotected..." migrate as they would
without Safeconduct, so that both kinds run side by side on the same hosts.

Before Nova 33 nothing migrates a vTPM. The least that does is what this adds:
the destination's nova-compute asks the key manager for the passphrase, with the
request's token, and defines the libvirt secret.
"""

from nova import crypto
from nova_safeconduct import driver


def is_baseline(instance):
    return instance.display_name.startswith('unprotected')


class BaselineDriver(driver.SafeconductDriver):

    def _protects(self, instance):
        return not is_baseline(instance) and super()._protects(instance)

    def _drop(self, instance):
        libvirt = driver.libvirt_driver.libvirt
        try:
            self._host.get_connection().secretLookupByUsage(
                libvirt.VIR_SECRET_USAGE_TYPE_VTPM, instance.uuid).undefine()
        except libvirt.libvirtError as e:
            if e.get_error_code() != libvirt.VIR_ERR_NO_SECRET:
                raise

    def pre_live_migration(self, context, instance, *args, **kwargs):
        data = super().pre_live_migration(context, instance, *args, **kwargs)
        if is_baseline(instance):
            secret_uuid, passphrase = crypto.ensure_vtpm_secret(
                context, instance)
            self._host.create_secret('vtpm', instance.uuid,
                                     password=passphrase, uuid=secret_uuid)
        return data

    def post_live_migration_at_destination(self, context, instance,
                                           *args, **kwargs):
        super().post_live_migration_at_destination(
            context, instance, *args, **kwargs)
        if is_baseline(instance):
            self._drop(instance)
