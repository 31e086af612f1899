-- What every installation has from its first day: secured tables, shared partitions, one model,
-- and one tenant, so that a first user needs no talk of tenants. Runs every time, last; what is
-- there already stays as it is.

select rag._secure_table('rag.tenants', 'tenant_id');
select rag._secure_table('rag.tenant_grants', 'tenant_id');
select rag._secure_table('rag.collections', 'tenant_id');
select rag._secure_table('rag.documents', 'tenant_id');
select rag._secure_table('rag.past_documents', 'tenant_id');
select rag._secure_table('rag.past_chunks', 'tenant_id');
select rag._secure_table('rag.past_embeddings', 'tenant_id');
select rag._secure_table('rag.chunks', 'tenant_id');
select rag._secure_table('rag.lexemes', 'tenant_id');
select rag._secure_table('rag.embeddings', 'tenant_id');
select rag._secure_place('rag.chunks');
select rag._secure_place('rag.lexemes');
select rag._secure_place('rag.embeddings');
select rag._secure_table('rag.jobs', 'tenant_id');
select rag._secure_table('rag.completions', 'tenant_id');
select rag._secure_table('rag.uploads', 'tenant_id');
select rag._secure_table('rag.runs', 'tenant_id');
select rag._secure_table('rag.run_documents', 'tenant_id');
select rag._secure_table('rag.lexeme_statistics', 'tenant_id');
select rag._secure_table('rag.posting_sets', 'tenant_id');
select rag._secure_table('rag.postings', 'tenant_id');
select rag._secure_table('rag.eval_sets', 'tenant_id');
select rag._secure_table('rag.eval_queries', 'tenant_id');
select rag._secure_table('rag.judgements', 'tenant_id');
select rag._secure_table('rag.eval_runs', 'tenant_id');
select rag._secure_table('rag.eval_results', 'tenant_id');
select rag._secure_table('rag.query_embeddings', 'tenant_id');
select rag._secure_table('rag.queries', 'tenant_id');
select rag._secure_table('rag.tenant_usage', 'tenant_id');
select rag._secure_table('rag.usage_deltas', 'tenant_id');
select rag._secure_table('rag.moves', 'tenant_id');

-- Grants of roles that were dropped are nobody's here; a dump would carry the bare number into a
-- cluster where it may be somebody's.
delete from rag.tenant_grants as g
where not exists (select from pg_roles as r where r.oid = g.role);

-- After the grants, and all functions: what rag.audit() holds against what it finds later.
select rag._take_baseline();

do $$
declare
    v_partitions int;
begin
    if not exists (select from rag.models) then
        perform rag._create_model(
            'all-MiniLM-L6-v2', 384, 'sentence-transformers', is_active => true
        );
    end if;
    -- What it reads at most, so that chunks by tokens are never longer.
    update rag.models as m
    set settings = m.settings || '{"max_tokens": 256}'
    where m.name = 'all-MiniLM-L6-v2' and not m.settings ? 'max_tokens';
    -- As many as `python -m db.migrate --partitions` says, which is refused later on.
    v_partitions := rag._shared_partitions();
    if not exists (select from rag.partitions) then
        perform rag._create_partition('shared') from generate_series(1, v_partitions);
    end if;
    if not exists (select from rag.tenants) then
        perform rag.create_tenant('default');
        perform rag.grant_tenant(session_user::text, 'default');
    end if;
end
$$;
