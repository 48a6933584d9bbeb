"""Safeconduct's part of nova-compute: a libvirt driver whose live migrations
of servers with a vTPM run under two mutually attested enclaves.

driver.py is what Nova loads (compute_driver = safeconduct.SafeconductDriver);
node.py speaks to the node service of the host; conf.py has the options.
"""

__version__ = '1.0.0'
