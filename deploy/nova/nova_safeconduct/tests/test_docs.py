"""docs/nova.md names what there is."""

import os
import re
import unittest

from nova_safeconduct import conf
from nova_safeconduct import refusal

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                    '../../../../docs/nova.md')


@unittest.skipUnless(os.path.exists(PAGE), 'not in the source tree')
class Page(unittest.TestCase):

    def setUp(self):
        super().setUp()
        with open(PAGE) as f:
            self.text = f.read()

    def test_every_option_is_there_with_its_default(self):
        rows = dict(re.findall(r'^\| `(\w+)` \| ([^|]*) \|', self.text,
                               re.MULTILINE))
        for opt in conf.OPTS:
            default = {False: 'off'}.get(opt.default, opt.default)
            self.assertEqual(str(default), rows[opt.name].strip('`'))

    def test_every_option_has_help(self):
        for opt in conf.OPTS:
            self.assertTrue(opt.help.strip(), opt.name)

    def test_the_drivers_own_reasons_are_there(self):
        driver = os.path.join(os.path.dirname(conf.__file__), 'driver.py')
        with open(driver) as f:
            reasons = set(re.findall(r"'([A-Z]+_[A-Z_]+)'", f.read()))
        errors = os.path.join(os.path.dirname(PAGE), 'errors.md')
        with open(errors) as f:
            known = set(re.findall(r'^## (\w+)$', f.read(), re.MULTILINE))
        for reason in reasons - known | {refusal.UNAVAILABLE}:
            self.assertIn('`%s`' % reason, self.text)
