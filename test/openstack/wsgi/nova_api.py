try:
    from nova.wsgi.osapi_compute import application
except ImportError:
    from nova.api.openstack.compute.wsgi import init_application
    application = init_application()
