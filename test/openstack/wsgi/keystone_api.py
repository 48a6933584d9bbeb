try:
    from keystone.wsgi.api import application
except ImportError:
    from keystone.server.wsgi import initialize_public_application
    application = initialize_public_application()
