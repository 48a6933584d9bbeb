"""Rows of Nova's database that nova-compute and nova-conductor would have written. rows.py CELL API services HOST... | migration UUID SERVER STATUS SOURCE DEST"""

import datetime
import sqlite3
import sys
import uuid

from nova.objects import service

cell, api = (sqlite3.connect(path, timeout=30) for path in sys.argv[1:3])
now = datetime.datetime.utcnow().isoformat(' ')


def insert(db, table, **values):
    db.execute('INSERT INTO %s (%s) VALUES (%s)' % (table, ', '.join(values), ', '.join('?' * len(values))), list(values.values()))


if sys.argv[3] == 'services':
    cell_id = api.execute("SELECT id FROM cell_mappings WHERE name = 'cell1'").fetchone()[0]
    for host in sys.argv[4:]:
        insert(cell, 'services', created_at=now, last_seen_up=now, host=host, binary='nova-compute', topic='compute', report_count=1, disabled=0, deleted=0,
               forced_down=0, version=service.SERVICE_VERSION, uuid=str(uuid.uuid4()))
        insert(cell, 'compute_nodes', created_at=now, updated_at=now, deleted=0, host=host, hypervisor_hostname=host + '.example', uuid=str(uuid.uuid4()),
               vcpus=1, memory_mb=1, local_gb=1, vcpus_used=0, memory_mb_used=0, local_gb_used=0, hypervisor_type='QEMU', hypervisor_version=7002000,
               cpu_info='{}', mapped=1)
        insert(api, 'host_mappings', created_at=now, cell_id=cell_id, host=host)
else:
    ident, server, status, source, destination = sys.argv[4:]
    cell.execute('DELETE FROM migrations WHERE uuid = ?', [ident])
    insert(cell, 'migrations', created_at=now, updated_at=now, deleted=0, uuid=ident, instance_uuid=server, status=status, migration_type='live-migration',
           source_compute=source, dest_compute=destination, source_node=source + '.example', dest_node=destination + '.example', hidden=0, cross_cell_move=0)
cell.commit()
api.commit()
