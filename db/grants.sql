-- Every right, in one place and last. What is not named here is for the owner alone.

revoke all on all tables in schema rag from public;
revoke all on all routines in schema rag from public;
revoke all on all tables in schema rag from rag_admin, rag_app, rag_worker;
revoke all on all routines in schema rag from rag_admin, rag_app, rag_worker;

grant usage on schema rag to rag_admin, rag_app, rag_worker;

-- rag_app: search, put and delete as a tenant; direct SQL reads the tenant's own rows.
grant select on
rag.tenants, rag.collections, rag.documents, rag.chunks, rag.embeddings, rag.models,
rag.uploads, rag.runs, rag.run_documents,
rag.past_documents, rag.past_chunks,
rag.eval_sets, rag.eval_queries, rag.judgements, rag.eval_runs, rag.eval_results
to rag_app;
grant execute on function
rag._policy_tenant(),
rag._policy_partition(),
rag._context(),
rag._candidates(
    text, int, text, jsonb, vector, text, real, real, text, int, timestamptz, text
),
rag._texts(bigint[], int),
rag._passages(
    text, int, text, jsonb, vector, text, real, real, text, int, int, timestamptz, text
),
rag._past_passages(
    bigint[], double precision[], int[], double precision[], int[], double precision[], text, int,
    timestamptz
),
rag.set_tenant(text, boolean),
rag.authenticate(text, boolean),
rag.current_tenant(),
rag.usage(),
rag.create_collection(
    text, text, int, int, text, real, real, real, real, text[], real, real, text, text, int, text[]
),
rag.alter_collection(
    text, text, int, int, text, real, real, real, real, text[], real, real, text, text, int, text[]
),
rag.reindex(text, int),
rag.chunk(text, text, int, int, int, text[], text),
rag.chunking_presets(),
rag.put(text, text, text, jsonb, text, text, int, int, text, text, int, text[], interval),
rag.put_many(jsonb, text, text, int, int, text, text, int, text[], interval),
rag.import_batch(regclass, text, int),
rag.delete(text, text, boolean),
rag.delete_where(jsonb, text, int),
rag.get(text, text, int),
rag.list(jsonb, text, int, bigint),
rag.count(jsonb, text),
rag.set_metadata(text, jsonb, text),
rag.patch_metadata(text, jsonb, text),
rag.patch_metadata_where(jsonb, jsonb, text, int),
rag.duplicates(text, real, bigint, int),
rag.rename_collection(text, text),
rag.drop_collection(text),
rag.set_record_retention(interval),
rag.set_retention(text, int, interval, interval),
rag.history(text, text),
rag.restore(text, int, text),
rag.cite(bigint, int),
rag.purge(int),
rag.search(text, int, text, jsonb, vector, text, real, real, text, int, int, timestamptz, text),
rag.explain(text, int, text, jsonb, vector, text, real, real, text, int, int, bigint, text),
rag.upload(text, bytea, jsonb, text, text, text),
rag.retry_upload(bigint),
rag.delete_upload(bigint),
rag.upload_progress(),
rag.begin_run(text, text, jsonb, bigint),
rag.note_run(bigint, jsonb, text),
rag.end_run(bigint, text, jsonb),
rag.import_documents(bigint, jsonb, vector[], text, text),
rag.rollback_run(bigint, int),
rag.cosine_similarity(vector, vector),
rag.find_similar(bigint, int, text),
rag.prepare_query(text),
rag.export_tenant(text, boolean, boolean),
rag.import_lines(text, text[]),
rag.wait_for(bigint, interval),
rag.document_state(bigint),
rag.add_judgements(text, jsonb, text),
rag.drop_eval_set(text),
rag.evaluate(text, int, text, real, text, boolean, text),
rag.compare_runs(int, int),
rag.active_model(),
rag.tune(text, text, boolean, boolean, int, int),
rag.compare_means(int, int),
rag.progress(),
rag.truncations(bigint),
rag.status(),
rag.failures()
to rag_app;
grant execute on procedure rag.import(regclass, text, int, bigint, bigint) to rag_app;

-- rag_admin: tenants and health; it reads no document.
grant select on
rag.partitions, rag.moves, rag.erasures, rag.models, rag.migrations
to rag_admin;
grant execute on function
rag.create_tenant(text),
rag.purge_all(int),
rag.drop_tenant(text),
rag.clone_tenant(text, text),
rag.export_tenant(text, boolean, boolean),
rag.import_lines(text, text[]),
rag.grant_tenant(text, text),
rag.revoke_tenant(text, text),
rag.grant_all_tenants(text),
rag.revoke_all_tenants(text),
rag.add_token_key(text, bytea, text, text[], interval),
rag.retire_token_key(text),
rag.list_token_keys(),
rag.set_quota(text, bigint, bigint, bigint, int, int),
rag.usage(),
rag.suspend_tenant(text, text),
rag.resume_tenant(text),
rag.audit(),
rag.set_query_cache(text, int, interval),
rag.upload_progress(),
rag.add_model(text, int, text, jsonb, text, text, text),
rag.alter_model(text, jsonb, text, text, text, text, boolean),
rag.activate_model(text, text, boolean),
rag.rollback_model(text),
rag.drop_model(text),
rag.list_models(),
rag.estimate_model(text, int),
rag.pause_jobs(text, text),
rag.resume_jobs(text, text),
rag.set_rate_limit(text, text, int, int),
rag.list_limits(),
rag.progress(),
rag.truncations(bigint),
rag.status(),
rag.failures(),
rag.retry_failed(text),
rag.cancel_move(text),
rag._begin_move(text, boolean),
rag._move_on(int, int, interval),
rag._pause(int, int),
rag.partition_report(),
rag.maintenance_plan(int, int, real, int),
rag._begin_maintenance(int, int, real, int),
rag._maintain(bigint),
rag.maintenance_report(int),
rag._pool(text),
rag.drop_empty_partitions(interval)
to rag_admin;
grant execute on procedure
rag.isolate_tenant(text, int, interval),
rag.pool_tenant(text),
rag.rebuild_tenant(text, int, interval),
rag._begin_as_autocommit(),
rag._move(int, int, interval),
rag.maintain(int, int, real, int)
to rag_admin;

-- rag_worker: the queue, and no table but the models, which are nobody's data.
grant select on rag.models to rag_worker;
grant execute on function
rag.claim_jobs(text, int, interval, text[]),
rag.complete_jobs(uuid, bigint[], vector[], int[]),
rag.fail_jobs(uuid, bigint[], text, boolean),
rag.release_jobs(uuid),
rag.extend_lease(uuid, interval),
rag.next_due(text[]),
rag.claim_uploads(text, int, interval),
rag.complete_upload(uuid, text, text, jsonb, text),
rag.fail_upload(uuid, text, boolean),
rag.extend_upload(uuid, interval),
rag.release_upload(uuid),
rag.upload_progress(),
rag.purge_all(int),
rag.claim_queries(text, text, int, interval),
rag.complete_queries(uuid, uuid[], vector[]),
rag.begin_word_vectors(text, text, text, interval),
rag.extend_word_vectors(int, real, interval),
rag.put_word_vectors(int, text[], vector[]),
rag.activate_word_vectors(int),
rag.worker_idle(),
rag.worker_awake(),
rag.progress(),
rag.failures()
to rag_worker;
