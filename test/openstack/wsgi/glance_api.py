try:
    from glance.wsgi.api import application
except ImportError:
    from glance.common.wsgi_app import init_app
    application = init_app()
