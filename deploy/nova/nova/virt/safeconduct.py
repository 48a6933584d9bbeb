"""compute_driver = safeconduct.SafeconductDriver

Nova looks for drivers in nova.virt only.
"""

from nova_safeconduct.driver import SafeconductDriver  # noqa: F401
