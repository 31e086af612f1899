"""Who may do what: the matrix of roles and objects, asked of the catalog.

`python -m tests.grants` writes tests/golden/grants.txt anew, from a server of its own; read the
difference before it is committed.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from db.migrate import migrate
from db.server import ROOT, Server

if TYPE_CHECKING:
    from psycopg import Connection

GOLDEN = Path(__file__).resolve().parent / "golden" / "grants.txt"

# One row for each object of ours with the roles that have a right on it; partitions of one table in
# one row. The owner's rights go without saying, and private functions, which nobody may execute.
GRANTS = """
with
objects as (
    select
        'schema' as kind, n.nspname::text as name, n.nspowner as owner,
        coalesce(n.nspacl, acldefault('n', n.nspowner)) as acl
    from pg_namespace as n
    where n.nspname in ('rag', 'rag_data')
    union all
    select
        case c.relkind when 'S' then 'sequence' when 'v' then 'view' else 'table' end,
        format('%I.%I', n.nspname, regexp_replace(c.relname, '\\d+', 'n', 'g')),
        c.relowner,
        coalesce(
            c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner)
        )
    from pg_class as c
    join pg_namespace as n on n.oid = c.relnamespace
    where
        c.relnamespace in ('rag'::regnamespace, 'rag_data'::regnamespace)
        and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
    union all
    select
        'column', format('%s.%I', a.attrelid::regclass, a.attname), c.relowner, a.attacl
    from pg_attribute as a
    join pg_class as c on c.oid = a.attrelid
    where
        c.relnamespace in ('rag'::regnamespace, 'rag_data'::regnamespace)
        and a.attacl is not null
    union all
    select
        'function', p.oid::regprocedure::text, p.proowner,
        coalesce(p.proacl, acldefault('f', p.proowner))
    from pg_proc as p
    where p.pronamespace = 'rag'::regnamespace
)
select distinct
    o.kind,
    o.name,
    coalesce(string_agg(
        case when a.grantee = 0 then 'PUBLIC' else a.grantee::regrole::text end || ' ' || a.rights,
        ', ' order by a.grantee::regrole::text
    ), '-')
from objects as o
left join lateral (
    select
        x.grantee,
        string_agg(
            lower(x.privilege_type) || case when x.is_grantable then ' (may grant)' else '' end,
            '+' order by x.privilege_type
        ) as rights
    from aclexplode(o.acl) as x
    where x.grantee <> o.owner
    group by x.grantee
) as a on true
group by o.kind, o.name, o.acl::text
having o.kind <> 'function' or count(a.rights) > 0
order by 1, 2, 3
"""

POLICIES = """
select c.oid::regclass::text, c.relrowsecurity, c.relforcerowsecurity, p.polname, p.polcmd,
    p.polpermissive, pg_get_expr(p.polqual, c.oid), p.polroles::regrole[]::text
from pg_class as c
left join pg_policy as p on p.polrelid = c.oid
where c.relnamespace in ('rag'::regnamespace, 'rag_data'::regnamespace) and c.relkind in ('r', 'p')
order by 1, 4
"""


def granted(connection: Connection[Any]) -> str:
    """The matrix as text: kind, object, roles with their rights; a line each."""
    lines = [f"{kind} {name}: {roles}" for kind, name, roles in connection.execute(GRANTS)]
    return "\n".join([*lines, ""])


def policies(connection: Connection[Any]) -> list[tuple[Any, ...]]:
    """Row-level security of every table."""
    return connection.execute(POLICIES).fetchall()


def main() -> None:
    """Write the matrix of a fresh database."""
    server = Server(ROOT / "grants")
    try:
        server.start()
        migrate(server.url())
        with psycopg.connect(server.url()) as connection:
            GOLDEN.write_text(granted(connection))
    finally:
        server.stop()
        shutil.rmtree(server.root)
    print(f"{GOLDEN} is written: read git diff before committing it", file=sys.stderr)


if __name__ == "__main__":
    main()
