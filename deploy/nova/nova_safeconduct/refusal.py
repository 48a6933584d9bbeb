"""Refusals of the node service, as it gives them: a reason whose names are
listed in docs/errors.md, with what was found, what was expected and what to
do about it.
"""

import re

import grpc

from nova_safeconduct.rpc import status_pb2

DOMAIN = 'safeconduct.dev'

# The reason of a call that did not reach the node service, or was not
# answered in time. It is this package's own.
UNAVAILABLE = 'NODE_UNAVAILABLE'


class Refusal(Exception):
    """The node service refused, or could not be asked."""

    def __init__(self, reason, message, item='', found='', expected='',
                 remedy=''):
        self.reason = reason
        self.message = message
        self.item = item
        self.found = found
        self.expected = expected
        self.remedy = remedy
        super().__init__(reason, message)

    def __str__(self):
        text = '%s: %s' % (self.reason, self.message.rstrip('.'))
        if self.item:
            text += ' (%s)' % self.item
        if self.found or self.expected:
            text += '; found %s, expected %s' % (self.found or 'nothing',
                                                 self.expected or 'nothing')
        if self.remedy:
            text += '. %s' % (self.remedy[0].upper() + self.remedy[1:])
        return text

    def brief(self):
        """The same with what matters first, for Nova cuts it off.

        An instance action event shows 255 characters of an error.
        """
        facts = [self.item] if self.item else []
        if self.found or self.expected:
            facts.append('found %s, expected %s' % (
                _short(self.found) or 'nothing',
                _short(self.expected) or 'nothing'))
        text = '%s%s: %s.' % (
            self.reason, ' (%s)' % '; '.join(facts) if facts else '',
            self.message.rstrip('.'))
        if self.remedy:
            text += ' %s' % (self.remedy[0].upper() + self.remedy[1:])
        return text

    @property
    def unavailable(self):
        return self.reason == UNAVAILABLE


def _short(text):
    """Digests by their first bytes: the log has them whole."""
    return re.sub(r'([0-9a-f]{16})[0-9a-f]{16,}', r'\1...', text)


def from_message(message, reason_name):
    """The Refusal that a session ended with: common_pb2.Refusal."""
    return Refusal(reason_name[len('REASON_'):], message.message,
                   message.item, message.found, message.expected,
                   message.remedy)


def from_rpc_error(error, endpoint):
    """The Refusal behind a grpc.RpcError."""
    for key, value in error.trailing_metadata() or ():
        if key != 'grpc-status-details-bin':
            continue
        for detail in status_pb2.Status.FromString(value).details:
            if not detail.type_url.endswith('/google.rpc.ErrorInfo'):
                continue
            info = status_pb2.ErrorInfo.FromString(detail.value)
            if info.domain == DOMAIN:
                m = info.metadata
                return Refusal(info.reason, m.get('message', error.details()),
                               m.get('item', ''), m.get('found', ''),
                               m.get('expected', ''), m.get('remedy', ''))
    code = error.code()
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return Refusal(
            UNAVAILABLE,
            'the node service at %s did not answer in time' % endpoint,
            remedy='look at the log of safeconductd on this host, and at the '
                   'timeouts in [safeconduct] of nova.conf')
    if code == grpc.StatusCode.UNAVAILABLE:
        return Refusal(
            UNAVAILABLE,
            'the node service at %s cannot be reached: %s'
            % (endpoint, error.details()),
            remedy='see that safeconductd runs on this host and that '
                   'nova-compute may open its socket')
    return Refusal('INTERNAL', 'the node service at %s: %s: %s'
                   % (endpoint, code.name, error.details()))
