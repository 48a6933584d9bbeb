"""nova-api with the patch: run with an overlay in PYTHONPATH, and
NOVA_IS_PATCHED in the environment.
"""

import inspect
import os
import unittest
from unittest import mock

from nova.compute import api
from nova import context
from nova import exception
from nova import objects
from nova import test
from oslo_utils.fixture import uuidsentinel as uuids

from nova_safeconduct import driver

DECORATOR = getattr(api, 'reject_unprotected_vtpm_live_migration',
                    getattr(api, 'reject_legacy_vtpm_live_migration', None))


@unittest.skipUnless(os.environ.get('NOVA_IS_PATCHED'), 'Nova is not patched')
class Patched(test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        self.context = context.RequestContext('user', 'project')
        # What each host's compute node says.
        self.hosts = {}
        self.stub_out('nova.objects.ComputeNodeList.get_all_by_host',
                      classmethod(self.nodes))
        self.asked = mock.Mock(return_value='migrates', __name__='f')

    def nodes(self, cls, ctxt, host):
        stats = self.hosts[host]
        fields = {} if stats is None else {'stats': stats}
        return [objects.ComputeNode(**fields)]

    def live_migrate(self, host_name=None, **specs):
        specs.setdefault('hw:tpm_version', '2.0')
        server = objects.Instance(
            uuid=uuids.server, host='src', system_metadata={},
            flavor=objects.Flavor(extra_specs={
                k: v for k, v in specs.items() if v}))
        self.stub_out('nova.objects.Instance.image_meta',
                      objects.ImageMeta.from_dict({}))

        def function(self_, *args, **kwargs):
            return self.asked(*args, **kwargs)
        return DECORATOR(function)(
            None, self.context, server, None, None, host_name, force=False,
            async_=True)

    def refused(self, *args, **specs):
        self.assertRaises(exception.OperationNotSupportedForVTPM,
                          self.live_migrate, *args, **specs)
        self.asked.assert_not_called()

    def test_live_migrate_is_what_is_patched(self):
        found, function = [], api.API.live_migrate
        while function is not None:
            found.append(inspect.getsource(function.__code__))
            function = getattr(function, '__wrapped__', None)
        self.assertIn('runs_safeconduct', ''.join(found))

    def test_hosts_with_the_driver_migrate_a_vtpm(self):
        self.hosts = {'src': driver.CAPABILITY,
                      'dst': dict(driver.CAPABILITY, other='x')}
        self.assertEqual('migrates', self.live_migrate('dst'))
        self.asked.assert_called_once_with(
            self.context, mock.ANY, None, None, 'dst', force=False,
            async_=True)

    def test_the_scheduler_may_choose(self):
        self.hosts = {'src': driver.CAPABILITY}
        self.assertEqual('migrates', self.live_migrate())

    def test_a_source_without_the_driver_refuses(self):
        for stats in ({}, {'other': 'x'}, None):
            self.hosts = {'src': stats, 'dst': driver.CAPABILITY}
            self.refused('dst')

    def test_a_destination_without_the_driver_refuses(self):
        self.hosts = {'src': driver.CAPABILITY, 'dst': {}}
        self.refused('dst')

    def test_a_server_without_a_vtpm_is_not_asked_about(self):
        self.assertEqual('migrates', self.live_migrate(
            'dst', **{'hw:tpm_version': None}))

    @unittest.skipUnless(driver._NOVA_33, 'Nova 33 and later')
    def test_other_hosts_are_as_nova_has_them(self):
        self.hosts = {'src': {}, 'dst': {}}
        self.refused('dst', **{'hw:tpm_secret_security': 'user'})
        mapping = 'nova.objects.InstanceMapping.get_by_instance_uuid'
        version = 'nova.objects.service.Service.get_minimum_version'
        with mock.patch(mapping), mock.patch(
                'nova.context.target_cell'), mock.patch(
                version, return_value=1):
            self.assertRaises(
                exception.VTPMOldCompute, self.live_migrate, 'dst',
                **{'hw:tpm_secret_security': 'host'})
        with mock.patch(mapping), mock.patch(
                'nova.context.target_cell'), mock.patch(
                version, return_value=1000):
            self.assertEqual('migrates', self.live_migrate(
                'dst', **{'hw:tpm_secret_security': 'host'}))
