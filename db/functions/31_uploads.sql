-- Uploads: a file is handed over by one select, a worker reads it and puts its text.
--
-- upload -> claim -> complete (or fail, or release), the way of the queue of embeddings: a claim is
-- a lease with a fencing token, so a worker that dies loses nothing and one that comes late changes
-- nothing.

create or replace function rag.upload(
    filename text,
    body bytea,
    metadata jsonb default '{}',
    collection text default 'default',
    uri text default null,
    language text default null
)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
#variable_conflict use_column
declare
    v_limit constant int := 50 * 1000 * 1000;
    v_tenant int := (select c.tenant_id from rag._context() as c);
    v_collection rag.collections;
    v_upload bigint;
begin
    if coalesce(length(btrim(upload.filename)), 0) not between 1 and 255 then
        raise exception 'invalid file name' using
            errcode = 'invalid_parameter_value',
            detail = format('The name is %L.', left(upload.filename, 300)),
            hint = 'A file name has 1 to 255 characters; its ending, such as .pdf, says how the '
            'file is read.';
    end if;
    if coalesce(octet_length(upload.body), 0) = 0 then
        raise exception 'the file is empty' using
            errcode = 'invalid_parameter_value',
            detail = format('The body of %L has no bytes.', upload.filename),
            hint = 'Hand over the bytes of the file as bytea.';
    end if;
    if octet_length(upload.body) > v_limit then
        raise exception 'the file is too large' using
            errcode = 'RG004',
            detail = format('%L has %s bytes; the limit is %s.', upload.filename,
                octet_length(upload.body), v_limit),
            hint = 'Split it, or hand over its text by rag.put.';
    end if;
    perform rag._check_document(
        'x', coalesce(upload.uri, upload.filename), null, coalesce(upload.metadata, '{}'),
        'The upload'
    );
    perform rag._count_requests(v_tenant, 'puts');
    perform rag._lock_tenant(v_tenant);
    -- Files that wait are in no measure yet.
    perform rag._queue_for_quota(v_tenant, null, null);
    v_collection := rag._collection(v_tenant, upload.collection);
    perform rag._check_upload_quota(
        v_tenant, v_collection.collection_id, coalesce(upload.uri, upload.filename),
        octet_length(upload.body)
    );
    insert into rag.uploads (
        tenant_id, collection_id, uri, filename, metadata, language, bytes, body
    )
    values (
        v_tenant, v_collection.collection_id, coalesce(upload.uri, upload.filename),
        upload.filename, coalesce(upload.metadata, '{}'), rag._language(upload.language),
        octet_length(upload.body), upload.body
    )
    returning upload_id into v_upload;
    perform rag._ring();
    return v_upload;
end
$$;

comment on function rag.upload(text, bytea, jsonb, text, text, text) is
    'Hand over a file: an embedder reads it and puts its text, by the uri or else the file''s '
    'name. Returns the id of the upload; rag.uploads tells its state, error and document.';

create or replace function rag._check_upload_quota(
    tenant_id int, collection_id int, uri text, bytes int
)
    returns void
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenant rag.tenants;
    v_use record;
    v_waiting record;
    v_new int;
    v_measure record;
begin
    select t.* into v_tenant
    from rag.tenants as t
    where t.tenant_id = _check_upload_quota.tenant_id;
    if v_tenant.max_documents is null
        and v_tenant.max_chunks is null
        and v_tenant.max_bytes is null
    then
        return;
    end if;
    v_use := rag._usage(_check_upload_quota.tenant_id);
    -- Those that failed are kept, too, so that they can be tried again.
    select
        coalesce(sum(u.bytes), 0) as bytes,
        count(distinct (u.collection_id, u.uri)) filter (
            where
                u.state <> 'failed'
                and (u.collection_id, u.uri)
                <> (_check_upload_quota.collection_id, _check_upload_quota.uri)
                and not exists (
                    select
                    from rag.documents as d
                    where
                        d.tenant_id = _check_upload_quota.tenant_id
                        and d.collection_id = u.collection_id
                        and d.uri = u.uri
                )
        ) as documents
    into v_waiting
    from rag.uploads as u
    where
        u.tenant_id = _check_upload_quota.tenant_id
        and u.state in ('pending', 'processing', 'failed');
    -- Whoever has too much already may still replace.
    select (count(*) = 0)::int into v_new
    from rag.documents as d
    where
        d.tenant_id = _check_upload_quota.tenant_id
        and d.collection_id = _check_upload_quota.collection_id
        and d.uri = _check_upload_quota.uri;
    for v_measure in
        select m.name, m.used, m.allowed
        from (values
            ('documents', v_use.documents + v_waiting.documents + v_new, v_tenant.max_documents,
                v_new),
            -- A file becomes one passage at least.
            ('chunks', v_use.chunks + v_new, v_tenant.max_chunks, v_new),
            ('bytes', v_use.bytes + v_waiting.bytes + _check_upload_quota.bytes,
                v_tenant.max_bytes, 1)
        ) as m (name, used, allowed, added)
        where m.used > m.allowed and m.added > 0
    loop
        raise exception 'the quota of % is reached', v_measure.name using
            errcode = 'RG020',
            detail = format(
                'Tenant %L would have %s %s with this and the files that wait; the limit is %s.',
                v_tenant.name, v_measure.used, v_measure.name, v_measure.allowed
            ),
            hint = 'Nothing was written. Delete what is not needed (rag.usage() tells what there '
            'is, rag.uploads which files wait or failed), or have an administrator raise it by '
            'rag.set_quota.';
    end loop;
end
$$;

comment on function rag._check_upload_quota(int, int, text, int) is
    'The error where a file is more than its tenant''s quota, files that wait or failed included.';

create or replace function rag._claim_upload(tenant_id int, due timestamptz)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_upload record;
begin
    loop
        select u.upload_id, u.attempts, u.state into v_upload
        from rag.uploads as u
        where
            u.tenant_id = _claim_upload.tenant_id
            and u.state in ('pending', 'processing')
            and u.due_at <= _claim_upload.due
        order by u.due_at
        limit 1
        for update skip locked;
        -- Whoever had it five times did not live to say why.
        exit when not found or v_upload.state = 'pending' or v_upload.attempts < 5;
        update rag.uploads as u
        set
            state = 'failed', lease_token = null, finished_at = clock_timestamp(),
            error = 'no worker finished it in 5 attempts'
            || coalesce('; the last error was: ' || u.error, '')
        where u.tenant_id = _claim_upload.tenant_id and u.upload_id = v_upload.upload_id;
    end loop;
    return v_upload.upload_id;
end
$$;

comment on function rag._claim_upload(int, timestamptz) is
    'Lock the tenant''s upload that is due first, or null; fail those lost five times.';

create or replace function rag.claim_uploads(
    worker text, batch int default 1, lease interval default '2 minutes'
)
    returns table (
        lease_token uuid,
        upload_id bigint,
        filename text,
        uri text,
        body bytea,
        attempts int
    )
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_due timestamptz := clock_timestamp();
    v_tenant int;
    v_upload bigint;
    v_left int := claim_uploads.batch;
begin
    perform rag._check_lease(claim_uploads.lease);
    if claim_uploads.batch is null or claim_uploads.batch not between 1 and 100 then
        raise exception 'invalid batch' using
            errcode = 'invalid_parameter_value',
            detail = format('batch is %s.', coalesce(claim_uploads.batch::text, 'null')),
            hint = 'Claim 1 to 100 uploads: files are large, and each has a lease of its own.';
    end if;
    -- Those whose files are read by the fewest first, so that nobody's thousand files delay
    -- another's one.
    for v_tenant in
        with recursive
        waiting as (
            (
                select u.tenant_id
                from rag.uploads as u
                where u.state in ('pending', 'processing')
                order by u.tenant_id
                limit 1
            )
            union all
            select n.tenant_id
            from waiting as w
            cross join lateral (
                select u.tenant_id
                from rag.uploads as u
                where u.state in ('pending', 'processing') and u.tenant_id > w.tenant_id
                order by u.tenant_id
                limit 1
            ) as n
        )
        select w.tenant_id
        from waiting as w
        cross join lateral (
            select
                count(*) filter (where u.due_at > v_due and u.state = 'processing') as held,
                count(*) filter (where u.due_at <= v_due) as due
            from rag.uploads as u
            where u.tenant_id = w.tenant_id and u.state in ('pending', 'processing')
        ) as n
        where
            n.due > 0
            and exists (
                select
                from rag.tenants as t
                where t.tenant_id = w.tenant_id and not t.is_suspended
            )
        order by n.held, random()
    loop
        v_upload := rag._claim_upload(v_tenant, v_due);
        continue when v_upload is null;
        return query
        update rag.uploads as u
        set
            state = 'processing',
            attempts = u.attempts + 1,
            lease_token = gen_random_uuid(),
            worker = left(claim_uploads.worker, 200),
            due_at = v_due + claim_uploads.lease
        where u.tenant_id = v_tenant and u.upload_id = v_upload
        returning
            u.lease_token, u.upload_id, u.filename, u.uri, u.body, u.attempts::int;
        v_left := v_left - 1;
        exit when v_left = 0;
    end loop;
end
$$;

comment on function rag.claim_uploads(text, int, interval) is
    'Lease uploads that are due, one of a tenant, each with a token of its own; none of those that '
    'are suspended. A lease that runs out is claimed again; what five workers lost is failed.';

create or replace function rag._held_upload(lease_token uuid)
    returns rag.uploads
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenant int := (
        select u.tenant_id from rag.uploads as u where u.lease_token = _held_upload.lease_token
    );
    v_upload rag.uploads;
begin
    -- The tenant first: rag.drop_tenant takes both locks in this order, too.
    perform from rag.tenants as t where t.tenant_id = v_tenant for key share;
    select u.* into v_upload
    from rag.uploads as u
    where
        u.tenant_id = v_tenant
        and u.lease_token = _held_upload.lease_token
        and u.state = 'processing'
    for update;
    return v_upload;
end
$$;

comment on function rag._held_upload(uuid) is
    'Lock the upload that a lease holds; null if it went to another.';

create or replace function rag.complete_upload(
    lease_token uuid, content text, title text, metadata jsonb, language text default null
)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    v_upload rag.uploads := rag._held_upload(complete_upload.lease_token);
    v_metadata jsonb;
    v_newer bigint;
    v_document bigint;
begin
    if v_upload.upload_id is null then
        return null;
    end if;
    if (select t.is_suspended from rag.tenants as t where t.tenant_id = v_upload.tenant_id) then
        perform rag.release_upload(complete_upload.lease_token);
        return null;
    end if;
    select max(u.upload_id) into v_newer
    from rag.uploads as u
    where
        u.tenant_id = v_upload.tenant_id
        and u.collection_id = v_upload.collection_id
        and u.uri = v_upload.uri
        and u.upload_id > v_upload.upload_id;
    if v_newer is not null then
        update rag.uploads as u
        set
            state = 'replaced', lease_token = null, finished_at = clock_timestamp(), body = null,
            error = format('upload %s of the same uri came after it', v_newer)
        where u.tenant_id = v_upload.tenant_id and u.upload_id = v_upload.upload_id;
        return null;
    end if;
    -- What the uploader says counts more than what the file says.
    v_metadata := coalesce(complete_upload.metadata, '{}') || v_upload.metadata;
    perform rag._check_document(
        complete_upload.content, v_upload.uri, complete_upload.title, v_metadata, 'The file'
    );
    select d.document_id into v_document
    from rag._put_documents(
        (
            select c.name
            from rag.collections as c
            where
                c.tenant_id = v_upload.tenant_id and c.collection_id = v_upload.collection_id
        ),
        array[complete_upload.content],
        array[v_upload.uri],
        array[complete_upload.title],
        array[v_metadata],
        null, null, null, coalesce(v_upload.language, complete_upload.language), 0::smallint,
        null, null, null, null, v_upload.tenant_id
    ) as d;
    update rag.uploads as u
    set
        state = 'completed', lease_token = null, finished_at = clock_timestamp(), error = null,
        document_id = v_document, body = null
    where u.tenant_id = v_upload.tenant_id and u.upload_id = v_upload.upload_id;
    return v_document;
end
$$;

comment on function rag.complete_upload(uuid, text, text, jsonb, text) is
    'Put the text of a file as its tenant and finish the upload; returns the document''s id. Null '
    'if the lease went to another, a later upload of the same uri came (replaced), or the tenant '
    'is suspended (pending again).';

create or replace function rag.fail_upload(
    lease_token uuid, error text, permanent boolean default false
)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_upload rag.uploads := rag._held_upload(fail_upload.lease_token);
    v_is_last boolean := fail_upload.permanent or v_upload.attempts >= 5;
begin
    update rag.uploads as u
    set
        state = case when v_is_last then 'failed' else 'pending' end,
        lease_token = null,
        error = coalesce(nullif(left(fail_upload.error, 2000), ''), 'unknown error'),
        finished_at = case when v_is_last then clock_timestamp() end,
        -- The waits of rag.fail_jobs.
        due_at = clock_timestamp()
        + least(600, power(2, u.attempts)) * (1 + random() / 2) * interval '1 second'
    where u.tenant_id = v_upload.tenant_id and u.upload_id = v_upload.upload_id;
    return found;
end
$$;

comment on function rag.fail_upload(uuid, text, boolean) is
    'Put an upload back with its error, to be tried again later; failed for good if permanent or '
    'after the fifth attempt. False if the lease went to another.';

create or replace function rag.extend_upload(
    lease_token uuid, lease interval default '2 minutes'
)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
begin
    perform rag._check_lease(extend_upload.lease);
    update rag.uploads as u
    set due_at = clock_timestamp() + extend_upload.lease
    where u.lease_token = extend_upload.lease_token and u.state = 'processing';
    return found;
end
$$;

comment on function rag.extend_upload(uuid, interval) is
    'Heartbeat: hold an upload for longer; false if the lease went to another.';

create or replace function rag.release_upload(lease_token uuid)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
begin
    update rag.uploads as u
    set
        state = 'pending', lease_token = null, worker = null, due_at = clock_timestamp(),
        attempts = greatest(0, u.attempts - 1)
    where u.lease_token = release_upload.lease_token and u.state = 'processing';
    return found;
end
$$;

comment on function rag.release_upload(uuid) is
    'Give an upload back at once, the attempt not counted; false if the lease went to another.';

create or replace function rag.retry_upload(upload_id bigint)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenant int := (select c.tenant_id from rag._context() as c);
begin
    update rag.uploads as u
    set
        state = 'pending', error = null, attempts = 0, due_at = clock_timestamp(),
        finished_at = null
    where
        u.tenant_id = v_tenant
        and u.upload_id = retry_upload.upload_id
        and u.state = 'failed';
    if not found then
        return false;
    end if;
    perform rag._ring();
    return true;
end
$$;

comment on function rag.retry_upload(bigint) is
    'Queue a failed upload of the caller''s tenant again; false if there is none of that id.';

create or replace function rag.delete_upload(upload_id bigint)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenant int := (select c.tenant_id from rag._context() as c);
begin
    delete from rag.uploads as u
    where u.tenant_id = v_tenant and u.upload_id = delete_upload.upload_id;
    return found;
end
$$;

comment on function rag.delete_upload(bigint) is
    'Forget an upload of the caller''s tenant, read or not; the document that it became stays.';

create or replace function rag.upload_progress()
    returns table (
        tenant text,
        pending bigint,
        processing bigint,
        completed bigint,
        failed bigint,
        bytes_left bigint,
        oldest_pending interval
    )
    language plpgsql
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_overseen int[] := rag._overseen_tenants();
begin
    return query
    select
        t.name,
        count(*) filter (where u.state = 'pending'),
        count(*) filter (where u.state = 'processing'),
        count(*) filter (where u.state = 'completed'),
        count(*) filter (where u.state = 'failed'),
        coalesce(sum(u.bytes) filter (where u.state in ('pending', 'processing')), 0)::bigint,
        clock_timestamp() - min(u.created_at) filter (where u.state = 'pending')
    from rag.uploads as u
    join rag.tenants as t on t.tenant_id = u.tenant_id
    where u.tenant_id = any(v_overseen)
    group by t.name
    order by t.name;
end
$$;

comment on function rag.upload_progress() is
    'Files handed over by rag.upload, by state, but for those replaced by a later one of the same '
    'uri: the caller''s tenant''s, or all for administrators and workers.';
