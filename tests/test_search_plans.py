"""What search, put and the queue touch: indexes, partitions and locks, seen from inside.

The embedded server has no auto_explain, and to explain a copy of a statement would prove little.
Instead the calls run as they are, as a login role with rag_app, and the server's own counters tell
which tables and indexes they scanned, pg_locks which they hold.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString, Self

import psycopg
import pytest

from tests.conftest import as_user, drop_role
from tests.test_postings import NEXT, asked_lists, choose

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Databases, RoleFactory

# 100 documents of 3 passages: each has a common word, and words that few others have.
PUT = """
select from rag.put_many((
    select jsonb_agg(jsonb_build_object('uri', %(uri)s || d, 'content', t.content))
    from generate_series(1, 100) as d
    cross join lateral (
        select string_agg(
            format('A common word, then word%%s and word%%s.', d, d * 7 + n),
            E'\n\n'
        ) as content
        from generate_series(1, 3) as n
    ) as t
), chunk_size => 50, chunk_overlap => 0)
"""

# What an embedder does, with vectors of no meaning.
EMBED = """
select rag.complete_jobs(
    (array_agg(c.lease_token))[1],
    array_agg(c.job_id),
    array_agg((
        select array_agg(sin(c.job_id * n))::real[]::vector
        from generate_series(1, c.dimensions) as n
    ))
)
from rag.claim_jobs('test', 10000) as c
"""

# 20,000 passages of a neighbour in the same partition, made without the work of putting them.
NEIGHBOUR = """
with documents as (
    insert into rag.documents (
        tenant_id, collection_id, uri, content, content_hash, language, chunking
    )
    select n.tenant_id, n.collection_id, 'uri ' || i, 'text ' || i, rag._hash('text ' || i),
        'english', '{}'
    from rag.collections as n
    join rag.tenants as t on t.tenant_id = n.tenant_id and t.name = %(tenant)s
    cross join generate_series(1, 5000) as i
    returning tenant_id, document_id, collection_id
),
chunks as (
    insert into rag.chunks (
        partition_id, tenant_id, document_id, collection_id, ordinal, start_offset, end_offset,
        content, content_hash
    )
    select t.partition_id, d.tenant_id, d.document_id, d.collection_id, i, 0, 1, x.content,
        rag._hash(x.content)
    from documents as d
    join rag.tenants as t on t.tenant_id = d.tenant_id
    cross join generate_series(1, 4) as i
    cross join lateral (select format('passage %%s of %%s', i, d.document_id) as content) as x
    returning partition_id, tenant_id, chunk_id, collection_id
),
lexemes as (
    insert into rag.lexemes (
        partition_id, tenant_id, chunk_id, collection_id, length, lexemes, weights
    )
    select c.partition_id, c.tenant_id, c.chunk_id, c.collection_id, 4,
        array_to_tsvector(array['common', 'word' || c.chunk_id %% 20000]), '{1:1}/1000000000'
    from chunks as c
),
statistics as (
    insert into rag.lexeme_statistics (
        tenant_id, lexeme, chunks, max_weight, sum_weight, sum_square
    )
    select t.tenant_id, 'word' || i, 2, 1, 2, 2
    from rag.tenants as t
    cross join generate_series(1, 20000) as i
    where t.name = %(tenant)s
)
insert into rag.embeddings (
    partition_id, tenant_id, chunk_id, model_id, collection_id, embedding
)
select c.partition_id, c.tenant_id, c.chunk_id, m.model_id, c.collection_id,
    array_fill(1 + c.chunk_id %% 7, array[m.dimensions])::real[]::halfvec
from chunks as c
cross join rag.models as m
"""

SEARCHES: dict[str, LiteralString] = {
    "lexical": "select * from rag.search('word7 or word21', mode => 'lexical')",
    "semantic": """
        select * from rag.search(
            '', mode => 'semantic', embedding => array_fill(1, array[384])::vector
        )
    """,
    "hybrid": """
        select * from rag.search(
            'word7 or word21', 50, embedding => array_fill(1, array[384])::vector
        )
    """,
    "text only": "select * from rag.search('word7 or word21')",
    "filter": """
        select * from rag.search(
            'word7 or word21', filter => '{"a": {"$ne": 1}}',
            embedding => array_fill(1, array[384])::vector
        )
    """,
    "options": """
        select * from rag.search(
            'word7 or word21', max_per_document => 1, neighbours => 2,
            embedding => array_fill(1, array[384])::vector
        )
    """,
    "explain": """
        select * from rag.explain(
            'word7 or word21', filter => '{"a": 1}', chunk_id => 1,
            embedding => array_fill(1, array[384])::vector
        )
    """,
}

WRITES: dict[str, LiteralString] = {
    "put": "select rag.put('A text about something new.', 'new', 'Title', '{\"a\": 1}')",
    "put again": "select rag.put('Once more the common word7.', 'last')",
    "put another title": "select rag.put('Once more the common word7.', 'last', 'Title')",
    "put other metadata": """
        select rag.put('Once more the common word7.', 'last', metadata => '{"a": 1}')
    """,
    "put another text": "select rag.put('A common word.', 'last')",
    "delete": "select rag.delete('last')",
}

# The rest of what an application may call, on what `prepare` has left: what reads,
READS: dict[str, LiteralString] = {
    "get": "select * from rag.get('last', 'kept')",
    "get a version": "select * from rag.get('last', 'kept', 1)",
    "list": "select * from rag.list()",
    "list, filter": "select * from rag.list('{\"a\": 1}', 'kept')",
    "count": "select rag.count()",
    "count, filter": "select rag.count('{\"a\": {\"$ne\": 1}}', 'kept')",
    "duplicates": "select * from rag.duplicates()",
    "history": "select * from rag.history('last', 'kept')",
    "cite": "select * from rag.cite(%(chunk)s)",
    "cite a version": "select * from rag.cite(%(past_chunk)s, 1)",
    "as_of": """
        select * from rag.search(
            'word7 or common', collection => 'kept', as_of => %(before)s,
            embedding => array_fill(1, array[384])::vector
        )
    """,
    "find_similar": "select * from rag.find_similar(%(chunk)s)",
    "upload_progress": "select * from rag.upload_progress()",
    "export_tenant": "select * from rag.export_tenant('default')",
    "compare_runs": "select * from rag.compare_runs(%(evaluation)s, %(evaluation)s)",
    "compare_means": "select * from rag.compare_means(%(evaluation)s, %(evaluation)s)",
    "wait_for": "select rag.wait_for(%(document)s, '0')",
    "document_state": "select rag.document_state(%(document)s)",
    "progress": "select * from rag.progress()",
    "failures": "select * from rag.failures()",
    "truncations": "select * from rag.truncations()",
    "status": "select * from rag.status()",
    "usage": "select * from rag.usage()",
    "who and what": """
        select rag.set_tenant('default'), rag.current_tenant(), rag.active_model(),
            rag.cosine_similarity('[1]', '[1]')
        from rag.chunk('A text.'), rag.chunking_presets()
    """,
}

# and what writes.
OTHERS: dict[str, LiteralString] = {
    "put_many": """
        select * from rag.put_many('[{"content": "A.", "uri": "1"}, {"content": "B.", "uri": "2"}]')
    """,
    "import_batch": "select * from rag.import_batch('pg_temp.incoming')",
    "delete for ever": "select rag.delete('last', purge => true)",
    "set_metadata": "select rag.set_metadata('last', '{\"a\": 2}')",
    "patch_metadata": "select rag.patch_metadata('last', '{\"a\": 2}')",
    "patch_metadata_where": """
        select rag.patch_metadata_where('{"a": 1}', '{"a": 2}', 'kept')
    """,
    "delete_where": "select rag.delete_where('{\"a\": 1}', 'kept')",
    "restore": "select rag.restore('last', 1, 'kept')",
    "restore what was deleted": "select rag.restore('gone', collection => 'kept')",
    "purge": "select rag.purge()",
    "create_collection": "select rag.create_collection('new')",
    "alter_collection": "select rag.alter_collection('kept', title_weight => 2)",
    "rename_collection": "select rag.rename_collection('kept', 'renamed')",
    "drop_collection": "select rag.drop_collection('kept')",
    "set_retention": "select rag.set_retention('kept', 1)",
    "set_record_retention": "select rag.set_record_retention('1 day')",
    "upload": "select rag.upload('b.txt', 'A text.')",
    "delete_upload": "select rag.delete_upload(%(upload)s)",
    "begin_run": "select rag.begin_run('sync', 'folder')",
    "note_run": """
        select rag.note_run(%(run)s, '[{"uri": "last", "action": "inserted"}]', 'default')
    """,
    "import_documents": """
        select * from rag.import_documents(
            %(run)s, '[{"uri": "new", "content": "A common word."}]',
            array[array_fill(1, array[384])::vector], 'all-MiniLM-L6-v2'
        )
    """,
    "end_run": "select rag.end_run(%(run)s, 'completed')",
    "rollback_run": "select * from rag.rollback_run(%(run)s)",
    "import_lines": "select * from rag.import_lines('default', %(lines)s)",
    "add_judgements": """
        select rag.add_judgements('more', '[{"query": "word7", "uri": "last"}]')
    """,
    "evaluate": "select * from rag.evaluate('set')",
    "tune": "select * from rag.tune(eval_set => 'set', use_embeddings => false)",
    "drop_eval_set": "select rag.drop_eval_set('set')",
    "prepare_query": "select rag.prepare_query('a query that is new')",
}

CLAIM: LiteralString = (
    "create temporary table claimed on commit drop as select * from rag.claim_jobs('test')"
)
COMPLETE: LiteralString = """
select rag.complete_jobs(
    c.lease_token, array_agg(c.job_id), array_agg(array_fill(1, array[384])::vector)
)
from claimed as c
group by c.lease_token
"""
FAIL: LiteralString = """
select rag.fail_jobs(c.lease_token, array_agg(c.job_id), 'broken', true)
from claimed as c
group by c.lease_token
"""
CLAIM_UPLOADS: LiteralString = (
    "create temporary table uploads on commit drop as select * from rag.claim_uploads('test')"
)
CLAIM_QUERIES: LiteralString = (
    "create temporary table asked on commit drop as"
    " select * from rag.claim_queries('test', 'all-MiniLM-L6-v2')"
)
LEARN: LiteralString = (
    "create temporary table learned on commit drop as"
    " select rag.begin_word_vectors('test', 'all-MiniLM-L6-v2', 'test') as set_id"
)

# What embedders and administrators call for a tenant, each after what it needs.
WORK: dict[str, list[LiteralString]] = {
    "claim": [CLAIM],
    "complete": [CLAIM, COMPLETE],
    "fail": [CLAIM, FAIL],
    "retry_failed": [CLAIM, FAIL, "select rag.retry_failed()"],
    "release_jobs": [CLAIM, "select rag.release_jobs(c.lease_token) from claimed as c"],
    "extend_lease": [CLAIM, "select rag.extend_lease(c.lease_token) from claimed as c"],
    "next_due": ["select rag.next_due(), rag.worker_idle(), rag.worker_awake()"],
    "claim_uploads": [CLAIM_UPLOADS],
    "complete_upload": [
        CLAIM_UPLOADS,
        "select rag.complete_upload(u.lease_token, 'A text.', 'A', '{}') from uploads as u",
    ],
    "fail_upload": [
        CLAIM_UPLOADS,
        "select rag.fail_upload(u.lease_token, 'broken', true) from uploads as u",
    ],
    "retry_upload": [
        CLAIM_UPLOADS,
        "select rag.fail_upload(u.lease_token, 'broken', true) from uploads as u",
        "select rag.retry_upload(u.upload_id) from uploads as u",
    ],
    "extend_upload": [CLAIM_UPLOADS, "select rag.extend_upload(u.lease_token) from uploads as u"],
    "release_upload": [CLAIM_UPLOADS, "select rag.release_upload(u.lease_token) from uploads as u"],
    "claim_queries": [CLAIM_QUERIES],
    "complete_queries": [
        CLAIM_QUERIES,
        """
        select rag.complete_queries(
            a.lease_token, array_agg(a.query_id), array_agg(array_fill(1, array[384])::vector)
        )
        from asked as a
        group by a.lease_token
        """,
    ],
    "word vectors": [
        LEARN,
        """
        select rag.put_word_vectors(
            l.set_id, array['word'], array[array_fill(1, array[384])::vector]
        )
        from learned as l
        """,
        "select rag.extend_word_vectors(l.set_id, 0.5) from learned as l",
        "select rag.activate_word_vectors(l.set_id) from learned as l",
    ],
    "reindex": [
        """
        update rag.collections
        set index_version = index_version + 1, reindexed_to = 0
        where name = 'kept'
        """,
        "select rag.reindex()",
    ],
    "purge_all": ["select rag.purge_all()"],
    "clone_tenant": ["select * from rag.clone_tenant('default', 'copy')"],
    "drop_tenant": ["select * from rag.drop_tenant('default')"],
}

# Granted, and called by neither.
UNCALLED = {
    # A procedure that commits; what it does is import_batch.
    "import",
    # Wants a signed token, and then does what set_tenant does.
    "authenticate",
}

# Tables that do not grow with the documents may be read as a whole.
SMALL = {
    "tenants",
    "tenant_grants",
    "collections",
    "models",
    "partitions",
    "rate_limits",
    "backfills",
    # What waits to be embedded for the cache, a bounded number.
    "queries",
}


@dataclass(frozen=True)
class Corpus:
    """Tenants of 1,500, 20,000 and 1 passages in one partition."""

    url: str
    app: str
    partition: int


@pytest.fixture(scope="module")
def corpus(databases: Databases, template: str) -> Iterator[Corpus]:
    url = databases.create(template)
    with psycopg.connect(url, autocommit=True) as admin:
        # Shared partitions are filled in turn, so 33 tenants are three in one of the sixteen.
        for n in range(33):
            admin.execute("select rag.create_tenant(%s)", [f"tenant {n}"])
        admin.execute("create role test_plans login in role rag_app")
        admin.execute("select rag.grant_all_tenants('test_plans')")
        for tenant, batches in (("tenant 0", 5), ("tenant 32", 0)):
            admin.execute("select rag.set_tenant(%s)", [tenant])
            for n in range(batches):
                admin.execute(PUT, {"uri": f"uri {n} "})
            admin.execute("select rag.put('Once more the common word7.', 'last')")
        admin.execute(EMBED)
        admin.execute(NEIGHBOUR, {"tenant": "tenant 16"})
        admin.execute("vacuum analyze")
        row = admin.execute(
            "select array_agg(distinct t.partition_id), count(*) from rag.tenants as t"
            " where t.name in ('tenant 0', 'tenant 16', 'tenant 32')"
        ).fetchone()
        assert row is not None
        assert row[1] == 3
        (partition,) = row[0]
        yield Corpus(url, as_user(url, "test_plans"), partition)
        drop_role(admin, "test_plans")
    databases.close(url)


class Session:
    """A connection that tells what its statements touch; what they change is undone."""

    def __init__(self, url: str, tenant: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True)
        # How many rows the last statement of `locks` gave.
        self.found = 0
        self.connection.execute("select rag.set_tenant(%s)", [tenant])

    def scans(self, *statements: LiteralString) -> tuple[set[str], set[str]]:
        """The tables that the last statement read as a whole and the indexes that it used."""
        with self.connection.transaction(force_rollback=True):
            for statement in statements[:-1]:
                self.connection.execute(statement)
            before = self._scans()
            self.connection.execute(statements[-1])
            touched = self._scans() - before
        tables = {name for (kind, name) in touched if kind == "r"}
        return tables, {name for (kind, name) in touched if kind == "i"}

    def _scans(self) -> Counter[tuple[str, str]]:
        rows = self.connection.execute(
            "select c.relkind::text, c.relname::text, pg_stat_get_xact_numscans(c.oid)"
            " from pg_class as c join pg_namespace as n on n.oid = c.relnamespace"
            " where n.nspname in ('rag', 'rag_data') and c.relkind in ('r', 'i')"
        )
        return Counter({(kind, name): count for kind, name, count in rows})

    def jobs_read(self, *statements: LiteralString) -> int:
        """How many rows and index entries of the queue the last statement has read."""
        count: LiteralString = (
            "select pg_stat_get_xact_tuples_returned('rag.jobs'::regclass)"
            " + sum(pg_stat_get_xact_tuples_returned(i.indexrelid))::bigint"
            " from pg_index as i where i.indrelid = 'rag.jobs'::regclass"
        )
        # The dead rows of the call before count too.
        self.connection.execute("vacuum rag.jobs")
        with self.connection.transaction(force_rollback=True):
            for statement in statements[:-1]:
                self.connection.execute(statement)
            before = self.connection.execute(count).fetchone()
            self.connection.execute(statements[-1])
            after = self.connection.execute(count).fetchone()
        assert before is not None
        assert after is not None
        return after[0] - before[0]

    def locks(
        self, *statements: LiteralString, given: dict[str, Any] | None = None
    ) -> set[tuple[str, str]]:
        """The locks on relations of ours that statements leave until their transaction ends."""
        with self.connection.transaction(force_rollback=True):
            for statement in statements:
                self.found = self.connection.execute(statement, given).rowcount
            rows = self.connection.execute(
                "select c.relname::text, l.mode from pg_locks as l"
                " join pg_class as c on c.oid = l.relation"
                " join pg_namespace as n on n.oid = c.relnamespace"
                " where l.pid = pg_backend_pid() and n.nspname in ('rag', 'rag_data')"
            ).fetchall()
        return {(name, mode) for name, mode in rows}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def partitions_of(names: set[str]) -> set[int]:
    """The numbers of the partitions that tables and indexes belong to."""
    return {int(found[1]) for name in names if (found := re.search(r"_p(\d+)(_|$)", name))}


@pytest.mark.parametrize("mode", SEARCHES)
@pytest.mark.parametrize("tenant", ["tenant 0", "tenant 32"], ids=["big", "small"])
def test_a_search_reads_by_index_in_its_own_partition(
    corpus: Corpus, mode: str, tenant: str
) -> None:
    with Session(corpus.app, tenant) as app:
        tables, indexes = app.scans(SEARCHES[mode])
    own = corpus.partition
    assert partitions_of(tables | indexes) <= {own}
    assert tables <= SMALL
    if mode == "explain":
        return
    if mode not in ("lexical", "text only"):
        assert f"embeddings_m1_p{own}_pkey" in indexes, "only the tenant's vectors are read"
    if tenant == "tenant 0":
        if mode != "semantic":
            assert f"lexemes_p{own}_lexemes_facets_idx" in indexes, "words are found by GIN"
        assert f"chunks_p{own}_pkey" in indexes, "passages are found by their ids"
        assert "documents_pkey" in indexes


@pytest.mark.parametrize("call", WRITES)
def test_a_write_reads_by_index_in_its_own_partition(corpus: Corpus, call: str) -> None:
    with Session(corpus.app, "tenant 0") as app:
        tables, indexes = app.scans(WRITES[call])
    assert partitions_of(tables | indexes) <= {corpus.partition}
    # No job waits here and nothing is past, so those tables are small too.
    assert tables <= SMALL | {"jobs", "past_documents"}


# A job for every passage that there is.
JOBS: LiteralString = """
insert into rag.jobs (tenant_id, chunk_id, model_id, partition_id, content_hash)
select c.tenant_id, c.chunk_id, m.model_id, c.partition_id, c.content_hash
from rag.chunks as c
cross join rag.models as m
where c.tenant_id = (select t.tenant_id from rag.tenants as t where t.name = 'tenant 16')
"""


def test_a_claim_reads_what_it_takes_and_not_what_waits(corpus: Corpus) -> None:
    with Session(corpus.url, "tenant 0") as worker:
        for analyze in ("analyze rag.tenants", "analyze rag.jobs"):
            # Each of 64 is looked at six times.
            assert worker.jobs_read(JOBS, analyze, CLAIM) < 500, analyze
            assert worker.jobs_read(JOBS, analyze, CLAIM, COMPLETE) < 1000, analyze


def test_the_queue_stays_in_the_partition_of_its_jobs(corpus: Corpus) -> None:
    with Session(corpus.url, "tenant 0") as worker:
        protocol: list[list[LiteralString]] = [[CLAIM], [CLAIM, COMPLETE]]
        for calls in protocol:
            tables, indexes = worker.scans(JOBS, "analyze rag.jobs", *calls)
            assert partitions_of(tables | indexes) == {corpus.partition}
            assert tables <= SMALL | {"completions"}


def test_twenty_searches_of_one_session_are_planned_alike(corpus: Corpus) -> None:
    """PL/pgSQL and psycopg both think of generic plans from the sixth call on."""
    with Session(corpus.app, "tenant 0") as app:
        locks = [app.locks(SEARCHES["hybrid"]) for _ in range(20)]
        scans = [app.scans(SEARCHES["hybrid"]) for _ in range(20)]
    # The first call of a session reads the catalog, and locks what it reads about.
    assert [lock ^ locks[1] for lock in locks[1:]] == [set()] * 19
    assert [scan for scan in scans if scan != scans[0]] == []


@pytest.mark.parametrize("mode", SEARCHES)
def test_a_search_runs_in_a_transaction_that_is_read_only(corpus: Corpus, mode: str) -> None:
    with Session(corpus.app, "tenant 0") as app:
        app.connection.read_only = True
        with app.connection.transaction():
            assert app.connection.execute(SEARCHES[mode]).fetchone() is not None
        if mode == "text only":
            # It notes the query, to be embedded for the next time.
            return
        app.connection.read_only = False
        with app.connection.transaction():
            app.connection.execute(SEARCHES[mode])
            row = app.connection.execute("select pg_current_xact_id_if_assigned()").fetchone()
            assert row == (None,), "it writes nothing where it could"


def test_a_search_leaves_no_setting_behind(corpus: Corpus) -> None:
    settings: LiteralString = "select name, setting, source from pg_settings order by name"
    with Session(corpus.app, "tenant 0") as app, app.connection.transaction():
        app.connection.execute("select '[1]'::vector")
        before = app.connection.execute(settings).fetchall()
        app.connection.execute(SEARCHES["hybrid"])
        assert app.connection.execute(settings).fetchall() == before


def test_functions_that_read_partitions_plan_for_the_partition_they_read(
    connection: psycopg.Connection[tuple[Any, ...]],
) -> None:
    """With a cached generic plan every partition is locked: 1,781 locks for one put were seen.

    A function in language sql has no custom plans before PostgreSQL 18, whatever its settings say.
    """
    rows = connection.execute(
        "select p.oid::regprocedure::text, l.lanname, coalesce(p.proconfig, '{}')"
        " from pg_proc as p join pg_language as l on l.oid = p.prolang"
        " where p.pronamespace = 'rag'::regnamespace"
        " and p.prosrc ~ '\\m(from|join|update|into)\\s+rag[.](chunks|lexemes|embeddings)\\M'"
        # It counts all there is, of all tenants.
        " and p.proname <> 'status'"
    ).fetchall()
    assert len(rows) > 10
    wrong = [
        name
        for name, language, settings in rows
        if "plan_cache_mode=force_custom_plan" not in settings or language != "plpgsql"
    ]
    assert wrong == []


def prepare(admin: psycopg.Connection[tuple[Any, ...]]) -> dict[str, Any]:
    """Something for every function to work on, in tenant default; and its ids."""
    admin.execute("select rag.set_tenant('default')")
    admin.execute("select rag.create_collection('kept')")
    admin.execute("select rag.set_retention('kept', 5, null, interval '1 day')")
    for text in ("The first common word.", "The second common word."):
        admin.execute("select rag.put(%s, 'last', 'Last', '{\"a\": 1}', 'kept')", [text])
    admin.execute("select rag.put('The second common word.', 'twin', collection => 'kept')")
    for uri in ("gone", "forgotten"):
        admin.execute("select rag.put('Gone is a common word.', %s, collection => 'kept')", [uri])
        admin.execute("select rag.delete(%s, 'kept')", [uri])
    admin.execute("update rag.past_documents set purge_at = now() where uri = 'forgotten'")
    admin.execute("select rag.put('One that goes out and in.', 'exported')")
    admin.execute(EMBED)
    lines = [line for (line,) in admin.execute("select line from rag.export_tenant('default')")]
    admin.execute("select rag.delete('exported')")
    admin.execute("select rag.put('Once more the common word7.', 'last')")
    admin.execute('select rag.add_judgements(\'set\', \'[{"query": "word7", "uri": "last"}]\')')
    admin.execute("select rag.prepare_query('word7')")
    admin.execute(
        "select rag.import_documents("
        'rag.begin_run(\'import\', \'test\'), \'[{"uri": "imported", "content": "Imported."}]\')'
    )
    row = admin.execute(
        "select rag.upload('a.txt', 'A.'), (select max(r.run_id) from rag.runs as r), e.run_id,"
        " (select d.document_id from rag.documents as d where d.uri = 'last' and d.version = 1),"
        " (select max(c.chunk_id) from rag.chunks as c join rag.embeddings as e using (chunk_id)),"
        " (select min(c.chunk_id) from rag.past_chunks as c),"
        " (select h.valid_from from rag.history('last', 'kept') as h where h.version = 1)"
        " from rag.evaluate('set') as e"
    ).fetchone()
    assert row is not None
    assert None not in row
    names = ("upload", "run", "evaluation", "document", "chunk", "past_chunk", "before")
    return {**dict(zip(names, row, strict=True)), "lines": lines}


def test_every_function_that_is_granted_is_called(
    connection: psycopg.Connection[tuple[Any, ...]],
) -> None:
    """So that a new one is in the test of the locks."""
    statements = [*SEARCHES.values(), *WRITES.values(), *READS.values(), *OTHERS.values()]
    statements += [statement for call in WORK.values() for statement in call]
    called = set(re.findall(r"\brag\.(\w+)\(", " ".join(statements)))
    granted = {
        name
        for (name,) in connection.execute(
            "select distinct p.proname::text from pg_proc as p, aclexplode(p.proacl) as a"
            " where p.pronamespace = 'rag'::regnamespace and p.proname !~ '^_'"
            " and a.grantee in ('rag_app'::regrole, 'rag_worker'::regrole)"
        )
    }
    assert granted - called == UNCALLED


def test_locks_do_not_grow_with_the_partitions(database: str, role: RoleFactory) -> None:
    app_url = role("default").url
    calls: dict[str, list[LiteralString]] = {**WORK}
    for some in (SEARCHES, WRITES, READS, OTHERS):
        calls |= {name: [call] for name, call in some.items()}

    def held() -> tuple[dict[str, Counter[tuple[str, str]]], set[str]]:
        """The locks of each call, and which calls found nothing to do."""
        locks: dict[str, Counter[tuple[str, str]]] = {}
        idle: set[str] = set()
        with Session(app_url, "default") as app, Session(database, "default") as worker:
            app.connection.execute(
                "create temporary table incoming ("
                "content text, uri text, title text, metadata jsonb, error text)"
            )
            app.connection.execute("insert into incoming values ('A common word.', 'in')")
            # The first call of a session plans, and planning locks every index of a table.
            for name, call in [*calls.items(), *calls.items()]:
                # Every 32nd change adds up the usage, and needs locks for that.
                worker.connection.execute(
                    "select setval(pg_get_serial_sequence('rag.usage_deltas', 'delta_id'), 320000)"
                )
                session = worker if name in WORK else app
                # A clone goes to one partition or another.
                locks[name] = Counter(
                    (re.sub(r"_p\d+", "_p", table), mode)
                    for table, mode in session.locks(*call, given=given)
                )
                if not session.found:
                    idle.add(name)
        return locks, idle

    with psycopg.connect(database, autocommit=True) as admin:
        given = prepare(admin)
        few, idle = held()
        admin.execute("select rag._create_partition('shared') from generate_series(1, 484)")
        many, _ = held()
    assert idle == {"failures", "truncations"}
    more = {name: locks - few[name] for name, locks in many.items()}
    assert {name: locks for name, locks in more.items() if locks} == {}
    assert few == many
    # Bounds for what is known to be there, so that more is noticed: all tables and all their
    # indexes count, and each once again for each kind of lock. A write that keeps the old version
    # and queues the new one is at 14 tables, a clone at those of two tenants.
    bounds = dict.fromkeys(SEARCHES, 30) | dict.fromkeys(READS, 50)
    bounds |= {"explain": 40, "status": 70, "clone_tenant": 180}
    held_by = {name: locks.total() for name, locks in few.items()}
    assert {n: c for n, c in held_by.items() if c > bounds.get(n, 145)} == {}


# All that a tenant with a partition of his own may have, and all that a search may ask of it.
BIG_QUERIES: dict[str, LiteralString] = {
    "words": "common word21 unknown21",
    "phrase": '"common word" common word21 unknown21 -b',
}
BIG_OPTIONS: dict[str, LiteralString] = {
    "lexical": "mode => 'lexical'",
    "lexical, filter": "mode => 'lexical', filter => '{\"a\": 1}'",
    "semantic": "mode => 'semantic', embedding => array_fill(1, array[384])::vector",
    "semantic, text only": "mode => 'semantic'",
    "hybrid": "embedding => array_fill(1, array[384])::vector",
    "hybrid, linear": "fusion => 'linear', embedding => array_fill(1, array[384])::vector",
    "hybrid, rrf": "fusion => 'rrf', embedding => array_fill(1, array[384])::vector",
    "hybrid, filter": """
        filter => '{"a": 1}', embedding => array_fill(1, array[384])::vector
    """,
    "hybrid, range": """
        filter => '{"a": {"$gte": 1}}', embedding => array_fill(1, array[384])::vector
    """,
    "hybrid, another model": """
        model => 'all-MiniLM-L6-v2', embedding => array_fill(1, array[384])::vector
    """,
    "text only": "mode => 'hybrid'",
    "text only, linear": "fusion => 'linear'",
    "text only, rrf": "fusion => 'rrf'",
    "text only, filter": "filter => '{\"a\": 1}'",
    "text only, rare": "filter => '{\"a\": 2}'",
    "text only, range": 'filter => \'{"a": {"$gte": 1}}\'',
    "text only, collection": "collection => 'default'",
    "text only, options": """
        collection => 'default', filter => '{"a": {"$ne": 2}}', max_per_document => 1,
        neighbours => 2, min_score => 0.1
    """,
}
BIG_SEARCH: LiteralString = "select s.query_embedding from rag.search('{}', {}) as s"


def test_a_search_takes_few_locks_in_a_big_tenant_too(database: str, role: RoleFactory) -> None:
    """Beside 500 partitions, with HNSW, posting lists that have changed, and word vectors."""
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("select rag.create_tenant('big')")
        admin.execute("select rag.set_tenant('big')")
        for n in range(2):
            admin.execute(PUT, {"uri": f"uri {n} "})
        admin.execute(
            "select rag.put('Once more the common word21.', 'b', metadata => '{\"a\": 1}')"
        )
        admin.execute(EMBED)
        admin.execute("call rag.isolate_tenant('big')")
        admin.execute(
            "select rag._fold_statistics(c.tenant_id, c.partition_id, 0) from rag._context() as c"
        )
        while admin.execute(NEXT).fetchone() in {("",), ("waiting",)}:
            pass
        choose(admin, always=True)
        # "word21" is known, "unknown21" by its pieces.
        admin.execute(
            "with learned as (select rag.begin_word_vectors('test', m.name, 'test') as set_id"
            " from rag.models as m)"
            " select rag.put_word_vectors(l.set_id, array['word21', 'unknown', '##21'], array("
            " select array_fill(n, array[384])::vector from generate_series(1, 3) as n))"
            " from learned as l"
        )
        admin.execute("select rag.activate_word_vectors(s.set_id) from rag.word_vector_sets as s")
        admin.execute("select rag._create_partition('shared') from generate_series(1, 484)")
        admin.execute("select rag.create_tenant('tenant ' || n) from generate_series(1, 484) as n")
        admin.execute("vacuum analyze rag.tenants")
        admin.execute("select rag.put('Now another common word21.', 'changed')")
        assert asked_lists(admin, BIG_QUERIES["words"])
    calls: dict[str, LiteralString] = {
        f"{name}, {kind}": BIG_SEARCH.format(query, options)
        for kind, query in BIG_QUERIES.items()
        for name, options in BIG_OPTIONS.items()
    }
    with Session(role("big").url, "big") as app:
        for statement in calls.values():
            app.locks(statement)
        locks = {name: app.locks(statement) for name, statement in calls.items()}
        kinds = app.connection.execute(calls["text only, words"]).fetchall()
    assert set(kinds) == {("words",)}
    own = max(partitions_of({name for name, _ in locks["text only, words"]}))
    assert {
        ("postings", "AccessShareLock"),
        ("word_vectors", "AccessShareLock"),
        ("queries", "RowExclusiveLock"),
        (f"embeddings_m1_p{own}_embedding_idx", "AccessShareLock"),
    } <= locks["text only, words"]
    assert {name: sorted(held) for name, held in locks.items() if len(held) > 30} == {}
