try:
    from barbican.wsgi.api import application
except ImportError:
    from barbican.api.app import get_api_wsgi_script
    application = get_api_wsgi_script()
