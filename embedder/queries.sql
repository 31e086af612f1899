-- All SQL of the worker. Each statement has a name and a description; embedder/queries.py loads
-- them. Placeholders are psycopg's; %(name)b asks for the binary format.

-- name: schema
-- Is ragdb in this database, and the type vector of pgvector: where, with its OIDs.
select
    to_regnamespace('rag') is not null as is_migrated,
    t.oid::int8 as vector_oid,
    t.typarray::int8 as vector_array_oid
from (values (1)) as one (row)
left join pg_catalog.pg_extension as e on e.extname = 'vector'
left join pg_catalog.pg_type as t on t.typnamespace = e.extnamespace and t.typname = 'vector'

-- name: models
-- The models, the active one first.
select
    m.name,
    m.dimensions,
    m.provider,
    m.revision,
    m.settings,
    m.query_prefix,
    m.document_prefix
from rag.models as m
where m.dropped_at is null
order by m.is_active desc, m.model_id

-- name: claim_jobs
-- Lease up to a batch of due jobs of one model, of those named or of any.
select
    c.job_id,
    c.lease_token,
    c.model,
    c.dimensions,
    c.document_prefix,
    c.content,
    c.attempts
from rag.claim_jobs(%(worker)s, %(batch)s, %(lease)s, %(models)s::text[]) as c

-- name: complete_jobs
-- Store embeddings and finish their jobs; how many were stored.
select rag.complete_jobs(
    %(lease_token)s, %(job_ids)s::bigint[], %(embeddings)b, %(truncated_tokens)s::int[]
)

-- name: fail_jobs
-- Put jobs back with their error, or park them; how many were still held.
select rag.fail_jobs(%(lease_token)s, %(job_ids)s::bigint[], %(error)s, %(permanent)s)

-- name: release_jobs
-- Give back what is left of a claim, the attempt not counted; how many.
select rag.release_jobs(%(lease_token)s)

-- name: extend_lease
-- Heartbeat; how many jobs the claim still holds.
select rag.extend_lease(%(lease_token)s, %(lease)s)

-- name: next_due
-- Seconds until the next job can be claimed, by the server's clock; null if there is none.
select extract(epoch from rag.next_due(%(models)s::text[]) - clock_timestamp())::float8

-- name: claim_uploads
-- Lease an upload that is due.
select
    u.lease_token,
    u.upload_id,
    u.filename,
    u.uri,
    u.body,
    u.attempts
from rag.claim_uploads(%(worker)s, 1, %(lease)s) as u

-- name: complete_upload
-- Put the text of a file and finish its upload; its document, null if the lease was lost.
select rag.complete_upload(
    %(lease_token)s, %(content)s, %(title)s, %(metadata)s, %(language)s::text
)

-- name: fail_upload
-- Put an upload back with its error, or fail it for good; false if the lease was lost.
select rag.fail_upload(%(lease_token)s, %(error)s, %(permanent)s)

-- name: release_upload
-- Give an upload back, the attempt not counted; false if the lease was lost.
select rag.release_upload(%(lease_token)s)

-- name: extend_upload
-- Heartbeat; false if the lease was lost.
select rag.extend_upload(%(lease_token)s, %(lease)s)

-- name: claim_queries
-- Lease queries that wait for the exact embedding by this model.
select
    c.query_id,
    c.lease_token,
    c.query_prefix,
    c.query
from rag.claim_queries(%(worker)s, %(model)s, %(batch)s, %(lease)s) as c

-- name: complete_queries
-- Put exact embeddings of queries into the cache and end the claim; how many were stored.
select rag.complete_queries(%(lease_token)s, %(query_ids)s::uuid[], %(embeddings)b)

-- name: begin_word_vectors
-- The id of a new set of word vectors to learn, or null if there is nothing to do.
select rag.begin_word_vectors(%(worker)s, %(model)s, %(recipe)s, %(lease)s)

-- name: extend_word_vectors
-- Heartbeat with the share that is done; false if another worker has taken over.
select rag.extend_word_vectors(%(set_id)s::int, %(progress)s::real, %(lease)s)

-- name: put_word_vectors
-- Hand in some of them; 0 if another worker has taken over.
select rag.put_word_vectors(%(set_id)s::int, %(words)s::text[], %(embeddings)b)

-- name: activate_word_vectors
-- Put the set into use; false if another worker has taken over.
select rag.activate_word_vectors(%(set_id)s::int)

-- name: progress
-- Work done and left, over all tenants and models that the role may see.
select
    coalesce(sum(p.embedded), 0)::int8 as embedded,
    coalesce(sum(p.waiting), 0)::int8 as waiting,
    coalesce(sum(p.leased), 0)::int8 as leased,
    coalesce(sum(p.failed), 0)::int8 as failed
from rag.progress() as p

-- name: queue
-- The queue over all tenants and models, and the files that are to be read.
select
    j.waiting, j.leased, j.failed, j.age, u.files_waiting, u.files_leased, u.files_failed,
    u.files_age
from (
    select
        coalesce(sum(p.waiting), 0)::int8 as waiting,
        coalesce(sum(p.leased), 0)::int8 as leased,
        coalesce(sum(p.failed), 0)::int8 as failed,
        coalesce(extract(epoch from max(p.oldest_waiting)), 0)::float8 as age
    from rag.progress() as p
) as j
cross join (
    select
        coalesce(sum(p.pending), 0)::int8 as files_waiting,
        coalesce(sum(p.processing), 0)::int8 as files_leased,
        coalesce(sum(p.failed), 0)::int8 as files_failed,
        coalesce(extract(epoch from max(p.oldest_pending)), 0)::float8 as files_age
    from rag.upload_progress() as p
) as u

-- name: export_tenant
-- A tenant as lines of JSON; COPY sends them as they are made and takes no parameters.
copy (
    select e.line
    from rag.export_tenant(
        {tenant}, embeddings => {embeddings}, grants => {grants}
    ) as e
) to stdout

-- name: create_tenant
-- A new tenant, or an error if there is one.
select rag.create_tenant(%(name)s)

-- name: import_lines
-- Some lines of an export; what is there is skipped.
select i.kind, i.imported, i.skipped from rag.import_lines(%(tenant)s, %(lines)s) as i

-- name: maintain
-- Do what is due; commits as it goes.
call rag.maintain(
    %(promote_at)s::int, %(demote_at)s::int, %(bloat)s::real, %(most_partitions)s::int
)

-- name: maintenance_plan
-- What would be done.
select p.action, coalesce(p.tenant, p.object, '') as subject, p.reason
from rag.maintenance_plan(
    %(promote_at)s::int, %(demote_at)s::int, %(bloat)s::real, %(most_partitions)s::int
) as p

-- name: maintenance_report
-- What was done.
select
    r.action,
    coalesce(r.tenant, r.object, '') as subject,
    concat(
        r.result, ', ' || round(r.seconds::numeric, 1) || ' s', ' (', r.reason, ')'
    )
    as done
from rag.maintenance_report() as r

-- name: listen
-- Subscribe to the doorbell.
listen rag_jobs

-- name: worker_idle
-- Ask to be woken.
select rag.worker_idle()

-- name: worker_awake
-- Ask not to be woken any more.
select rag.worker_awake()
