"""The libvirt hook, run as libvirt runs it, with a command line that answers
as each test says. test/nova runs it with the real one.
"""

import json
import os
import subprocess
import tempfile
import unittest

HOOK = os.path.join(
    os.path.dirname(os.path.abspath(__file__)),
    '../../hooks/qemu.d/50-safeconduct')
UUID = '7d9a1f5e-0c7b-4f3a-9e55-2f4b8f1f6c11'
DOMAIN = '''<domain type='kvm'><name>i</name><uuid>%s</uuid>
<devices>%%s</devices></domain>''' % UUID
VTPM = ("<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>")
EXTERNAL = ("<tpm model='tpm-crb'><backend type='external'/></tpm>")
HOSTS_OWN = ("<tpm model='tpm-tis'><backend type='passthrough'/></tpm>")


@unittest.skipUnless(os.path.exists(HOOK), 'not in the source tree')
class Hook(unittest.TestCase):

    def setUp(self):
        super().setUp()
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        self.dir = made.name

    def answer(self, *sessions, instance=UUID):
        self.program('cat <<END\n%s\nEND' % json.dumps({'sessions': [
            {'instance_id': instance, 'role': role, 'state': state}
            for role, state in sessions]}))

    def program(self, text):
        path = os.path.join(self.dir, 'safeconduct')
        with open(path, 'w') as f:
            f.write('#!/bin/sh\necho "$@" >%s/asked\n%s\n'
                    % (self.dir, text))
        os.chmod(path, 0o755)

    def run_hook(self, device, *operation, domain=DOMAIN):
        defaults = os.path.join(self.dir, 'defaults')
        with open(defaults, 'w') as f:
            f.write('# the program\nSAFECONDUCT="%s/safeconduct"\n'
                    'SAFECONDUCT_SOCKET=/run/x.sock\n' % self.dir)
        xml = domain % device if '%s' in domain else domain
        return subprocess.run(
            [HOOK, 'i'] + list(operation or ('migrate', 'begin', '-')),
            input=xml.encode(), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={'PATH': '/usr/bin:/bin',
                 'SAFECONDUCT_HOOK_DEFAULTS': defaults})

    def accepted(self, *args, **kwargs):
        done = self.run_hook(*args, **kwargs)
        self.assertEqual((0, b''), (done.returncode, done.stderr))
        # What a hook prints replaces the domain's XML.
        self.assertEqual(b'', done.stdout)

    def refused(self, why, *args, **kwargs):
        done = self.run_hook(*args, **kwargs)
        self.assertNotEqual(0, done.returncode)
        self.assertIn(why, done.stderr.decode())
        self.assertEqual(b'', done.stdout)

    def test_an_armed_session_lets_the_domain_in(self):
        for state in ('ARMED', 'transferring'):
            for device in (VTPM, EXTERNAL):
                self.answer(('destination', state))
                self.accepted(device)
        with open(os.path.join(self.dir, 'asked')) as f:
            asked = f.read()
        self.assertIn('migrations list --instance ' + UUID, asked)
        self.assertIn('--socket /run/x.sock', asked)

    def test_a_vtpm_without_an_armed_session_is_refused(self):
        for sessions in (
                (), (('destination', 'appraised'),), (('source', 'armed'),),
                (('destination', 'aborted'), ('destination', 'committed'))):
            for device in (VTPM, EXTERNAL):
                self.answer(*sessions)
                self.refused('no armed session', device)

    def test_another_domains_session_does_not_count(self):
        self.answer(('destination', 'armed'), instance=UUID[:-1] + '2')
        self.refused('no armed session', VTPM)

    def test_a_node_service_that_is_not_there_refuses(self):
        self.program('echo "no socket" >&2; exit 3')
        self.refused('no socket', VTPM)

    def test_an_answer_that_is_none_refuses(self):
        for text in ('echo', 'echo []', 'echo "{}"',
                     'echo \'{"sessions": [1]}\''):
            self.program(text)
            self.refused('cannot be read', VTPM)

    def test_a_program_that_is_not_there_refuses(self):
        self.refused('could not be asked', VTPM)

    def test_a_domain_that_cannot_be_read_is_refused(self):
        self.answer(('destination', 'armed'))
        self.refused('cannot be read', '', domain='<domain>')

    def test_a_domain_without_a_vtpm_is_not_asked_about(self):
        for device in ('', HOSTS_OWN):
            self.accepted(device)

    def test_other_operations_are_not_asked_about(self):
        for operation in (('start', 'begin', '-'), ('prepare', 'begin', '-'),
                          ('restore', 'begin', '-'),
                          ('migrate', 'end', '-')):
            self.accepted(VTPM, *operation)
