-- Seals: what a token that holds leaves in the setting rag.authenticated.
--
-- A digest with a secret of its key's, over the tenant, when it expires, the role, the backend and,
-- unless asked otherwise, the very transaction. Any role can write that setting, and copy it; the
-- seal is checked wherever the tenant is asked for.

create or replace function rag._seal(
    seal bytea, key_id int, tenant_id int, expires bigint, session_id bigint
)
    returns text
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_said text := concat_ws(
        '.', _seal.key_id, _seal.tenant_id, _seal.expires, coalesce('s' || _seal.session_id, 't')
    );
begin
    -- The beginning of a transaction, to the microsecond, is its own in a backend; and a backend is
    -- known by its pid, the start of its server and its client's port. Pids come again, and there
    -- are no ports where there is no network: sessions have numbers, too (rag._session_id).
    return v_said || '.' || encode(
        sha256(_seal.seal || sha256(_seal.seal || convert_to(concat_ws(
            '|',
            v_said,
            current_database(),
            rag._role()::oid,
            pg_backend_pid(),
            extract(epoch from pg_postmaster_start_time()),
            coalesce(inet_client_port(), 0),
            case
                when _seal.session_id is null then extract(epoch from transaction_timestamp())
            end
        ), 'UTF8'))),
        'hex'
    );
end
$$;

comment on function rag._seal(bytea, int, int, bigint, bigint) is
    'What the setting rag.authenticated holds for this caller, in this transaction or, where a '
    'session is given, in that session, and for nobody else.';

create or replace function rag._unsealed_tenant(sealed text)
    returns int
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_parts text[];
    v_seal bytea;
    v_is_here boolean;
begin
    if _unsealed_tenant.sealed !~ '^\d{1,9}\.\d{1,9}\.\d{1,12}\.(t|s\d{1,18})\.[0-9a-f]{64}$' then
        return null;
    end if;
    v_parts := string_to_array(_unsealed_tenant.sealed, '.');
    if v_parts[3]::bigint <= extract(epoch from clock_timestamp()) then
        return null;
    end if;
    -- A key that was retired takes with it all that it let in.
    select k.seal into v_seal
    from rag.token_keys as k
    where k.key_id = v_parts[1]::int;
    -- Of a retired key it is null.
    if sha256(convert_to(_unsealed_tenant.sealed, 'UTF8')) is distinct from sha256(convert_to(
        rag._seal(
            v_seal, v_parts[1]::int, v_parts[2]::int, v_parts[3]::bigint,
            nullif(substr(v_parts[4], 2), '')::bigint
        ),
        'UTF8'
    )) then
        return null;
    end if;
    -- A seal of ours; in a session that has no number, but the pid of one that had, an error.
    v_is_here := case
        when v_parts[4] = 't' then true
        when pg_is_in_recovery() then v_parts[4] = 's0'
        else v_parts[4] = 's' || currval('rag.session_ids')
    end;
    return case when v_is_here then v_parts[2]::int end;
end
$$;

comment on function rag._unsealed_tenant(text) is
    'The tenant that rag.authenticated holds, or null where its seal is not ours, of another '
    'caller, session or transaction, or its time is over.';

create or replace function rag._session_id()
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    -- A standby gives no numbers.
    if pg_is_in_recovery() then
        return 0;
    end if;
    return currval('rag.session_ids');
exception
    when object_not_in_prerequisite_state then
        if current_setting('transaction_read_only')::boolean then
            raise exception 'a read-only transaction gives a session no number' using
                errcode = 'read_only_sql_transaction',
                detail = 'A token that holds for a session is bound to the session''s number.',
                hint = 'Call rag.authenticate(token) in each transaction, or '
                'rag.authenticate(token, false) in one that may write.';
        end if;
        return nextval('rag.session_ids');
end
$$;

comment on function rag._session_id() is
    'The number of this session, which no other one has ever had: the last one that it drew. Who '
    'may not draw can neither choose nor change it; discard all forgets it.';
