"""The faults to survive, and the tests that provoke each.

The numbers are those of the list of faults in the design. A fault stands in `FAULTS` if it
concerns reading or the store, with the tests that provoke it, else in `ELSEWHERE` with the reason.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent

# number -> (what goes wrong, tests as "path below tests::function")
FAULTS = {
    1: (
        "SIGKILL at any system call that writes, and at any moment",
        [
            "tools/test_crash_sweep.py::test_no_fault_leaves_a_bad_state",
            "test_kill.py::test_killed_and_run_again",
            "test_kill.py::test_workers_end_with_their_parent",
            "store/test_commit.py::test_a_fallback_that_was_stopped_half_way_is_gone_on_with",
        ],
    ),
    2: (
        "power is lost: what was not synced is gone, torn or out of order",
        [
            "store/test_power_loss.py::test_the_old_output_or_the_new_one_is_left",
            "store/test_power_loss.py::test_a_missing_sync_would_be_found",
            "store/test_power_loss.py::test_a_run_after_it_gives_the_same_bytes",
        ],
    ),
    3: (
        "the disk is full, a quota or a limit on file sizes is reached",
        [
            "store/test_system_faults.py::test_a_disk_that_is_full",
            "store/test_commit.py::test_a_full_disk_at_any_write_leaves_the_old_store",
            "store/test_commit.py::test_a_limit_of_the_system_on_file_sizes",
            "store/test_commit.py::test_what_the_system_says",
            "tools/test_crash_sweep.py::test_no_fault_leaves_a_bad_state",
        ],
    ),
    4: (
        "the disk fails, in reading, writing and syncing",
        [
            "store/test_system_faults.py::test_a_corpus_that_the_disk_cannot_read",
            "store/test_system_faults.py::"
            "test_a_shard_or_a_manifest_that_the_disk_cannot_read_is_damaged",
            "readers/test_laws.py::test_a_disk_that_fails_is_named",
            "store/test_commit.py::test_what_the_system_says",
            "tools/test_crash_sweep.py::test_no_fault_leaves_a_bad_state",
        ],
    ),
    5: (
        "short writes, interrupted calls, no descriptors left",
        [
            "store/test_files.py::test_short_writes_are_gone_on_with",
            "store/test_system_faults.py::test_calls_that_are_interrupted_are_made_again",
            "store/test_system_faults.py::test_too_few_descriptors",
            "store/test_system_faults.py::test_workers_that_cannot_be_started",
        ],
    ),
    6: (
        "SIGINT and SIGTERM, once and again",
        [
            "test_cli.py::test_signals_stop_a_run_and_it_goes_on_later",
            "test_cli.py::test_a_signal_sent_again_and_again_does_no_more_harm",
        ],
    ),
    7: (
        "a worker crashes, is killed or runs out of memory",
        [
            "engine/test_local.py::test_a_worker_that_dies_is_noticed",
            "engine/test_local.py::test_a_worker_that_runs_out_of_memory_says_so",
            "test_wrong_inputs.py::test_what_the_user_reads",
        ],
    ),
    8: (
        "a file of the store is cut, at every length",
        [
            "store/test_damage.py::test_cut_and_missing_files_are_found_and_named",
            "store/test_hashes.py::test_a_manifest_cut_anywhere_is_damaged",
            "store/test_shard.py::test_a_shard_of_any_other_length_is_damaged",
            "store/test_holdout.py::test_a_damaged_list_is_never_read_as_less",
            "verify/test_damage.py::test_a_cut_emptied_lengthened_or_missing_file_is_found",
        ],
    ),
    9: (
        "a bit of a file of the store flips, at every byte",
        [
            "store/test_damage.py::test_every_flipped_byte_of_a_store_is_found_and_named",
            "store/test_hashes.py::test_every_flipped_bit_of_a_manifest_is_noticed",
            "store/test_shard.py::test_no_flipped_bit_can_make_more_of_a_shard_than_wrong_numbers",
            "verify/test_damage.py::test_a_flipped_bit_anywhere_is_found",
            "tokenize/test_reuse.py::test_a_damaged_shard_is_not_reused",
        ],
    ),
    10: (
        "an input is cut or damaged: gz, zst, xz, parquet, arrow",
        [
            "readers/test_conformance.py::test_a_compressed_file_cut_anywhere_is_an_error",
            "readers/test_conformance.py::test_a_table_cut_anywhere_is_an_error",
            "readers/test_conformance.py::test_an_arrow_stream_cut_anywhere_is_an_error",
            "readers/test_conformance.py::test_a_flipped_bit_never_changes_a_text_in_silence",
            "readers/test_conformance.py::test_a_flipped_bit_of_an_arrow_file_is_survived",
            "test_wrong_inputs.py::test_what_the_user_reads",
        ],
    ),
    11: (
        "two runs on one output",
        [
            "store/test_races.py::test_commands_at_once",
            "store/test_races.py::test_writers_take_turns_and_readers_see_whole_outputs",
            "store/test_commit.py::test_a_second_run_is_turned_away",
            "store/test_commit.py::test_a_reader_keeps_a_writer_out",
        ],
    ),
    12: (
        "an output is read while it is replaced",
        [
            "store/test_races.py::test_writers_take_turns_and_readers_see_whole_outputs",
            "store/test_races.py::"
            "test_a_store_opened_while_it_is_made_anew_is_the_old_one_or_the_new_one",
            "store/test_races.py::"
            "test_a_reader_of_an_output_that_is_replaced_never_takes_new_bytes_for_old",
        ],
    ),
    13: (
        "a remote store of inputs fails, is slow, or ends too early",
        [
            "readers/test_remote.py::test_one_fault_of_each_kind_is_survived",
            "readers/test_remote.py::test_a_fault_that_stays_is_an_error",
            "readers/test_object_stores.py::test_s3_faults",
            "readers/test_object_stores.py::test_s3_changes_and_refusals",
            "readers/test_hub.py::test_faults",
        ],
    ),
    14: (
        "an input changes between runs, or while it is read",
        [
            "tokenize/test_reuse.py::test_an_edit_of_equal_size_and_time_is_noticed",
            "tokenize/test_parts.py::test_a_changed_large_file_is_noticed",
            "readers/test_remote.py::test_a_file_that_is_replaced_while_it_is_read",
            "readers/test_remote.py::test_a_file_that_shrinks_or_grows",
            "test_wrong_inputs.py::test_what_the_user_reads",
        ],
    ),
    15: (
        "clocks go wrong, files come from the future",
        [
            "build/test_reproducible.py::test_a_clock_that_runs_backwards_changes_nothing",
            "build/test_reproducible.py::test_the_time_of_day_changes_nothing",
            "tokenize/test_reuse.py::test_a_touched_or_renamed_file_costs_nothing",
        ],
    ),
    16: (
        "inputs that may not be read, broken links, folders, pipes",
        [
            "tokenize/test_inputs.py::test_files_that_may_not_be_read_are_all_named_at_once",
            "readers/test_conformance.py::test_what_is_no_file_of_the_disk_hangs_nothing",
            "readers/test_conformance.py::test_a_file_that_is_not_there",
            "test_wrong_inputs.py::test_what_the_user_reads",
        ],
    ),
    17: (
        "text that is no text: bad UTF-8, surrogates, NUL, BOM, odd ends of lines",
        [
            "readers/test_jsonl.py::test_lines",
            "readers/test_jsonl.py::test_bad_lines_are_named_and_cost_no_other",
            "readers/test_laws.py::test_invalid_text_is_a_bad_record_or_is_replaced",
            "readers/test_text.py::test_bytes_that_are_no_text_are_named",
            "readers/test_conformance.py::test_any_texts_round_trip",
        ],
    ),
    18: (
        "giant lines, deep JSON, huge numbers, keys that stand twice",
        [
            "readers/test_jsonl.py::test_a_line_over_the_cap_is_passed_over_without_holding_it",
            "readers/test_hostile_records.py::test_a_deep_record_is_bad_or_passed_over",
            "readers/test_hostile_records.py::test_a_huge_number_is_no_trouble",
            "readers/test_hostile_records.py::"
            "test_of_a_key_that_stands_twice_the_last_counts_everywhere",
        ],
    ),
    19: (
        "bombs: little that unpacks to much",
        [
            "readers/test_laws.py::test_a_bomb_is_left_in_bounded_memory",
            "readers/test_laws.py::test_the_cap_on_a_file_counts_what_comes_out",
            "readers/test_laws.py::test_a_stream_that_needs_much_memory_is_refused",
            "test_strict_yaml.py::test_a_bomb_of_aliases_is_small",
        ],
    ),
    20: (
        "names that lead elsewhere or cannot be names",
        [
            "store/test_hostile_manifests.py::"
            "test_whatever_a_manifest_names_nothing_outside_is_opened",
            "store/test_hostile_manifests.py::test_domains_have_names_that_are_safe_as_folders",
            "store/test_hostile_manifests.py::test_a_split_makes_no_name_that_leads_elsewhere",
            "store/test_hashes.py::test_a_manifest_may_not_name_files_outside_its_folder",
            "tokenize/test_inputs.py::test_files_may_have_any_name_that_the_system_allows",
            "tokenize/test_rules.py::test_values_that_cannot_be_domains",
        ],
    ),
    21: (
        "links in the workdir that lead elsewhere",
        [
            "store/test_commit.py::test_a_link_in_the_control_folder_leads_nothing_outside",
            "store/test_files.py::test_a_name_that_is_a_link_elsewhere_is_not_followed",
            "store/test_commit.py::test_a_lock_that_is_a_link_is_not_followed",
            "store/test_commit.py::test_a_shard_that_is_a_link_is_encoded_again",
            "store/test_commit.py::"
            "test_an_output_that_is_a_link_is_replaced_and_what_it_leads_to_is_left",
        ],
    ),
    22: (
        "YAML that attacks: objects, aliases, keys twice, megabytes, depth",
        [
            "test_strict_yaml.py::test_no_object_is_constructed",
            "test_strict_yaml.py::test_a_bomb_of_aliases_is_small",
            "test_strict_yaml.py::test_a_key_that_stands_twice",
            "test_strict_yaml.py::test_a_file_is_at_most_1_mib",
            "test_strict_yaml.py::test_depth_is_bounded",
        ],
    ),
    23: (
        "data that would run as code",
        [
            "test_house.py::test_nothing_unsafe",
            "readers/test_hub.py::test_no_code_of_a_data_set_runs",
        ],
    ),
    24: (
        "a hostile tokenizer.json",
        [
            "tokenize/test_hostile_tokenizers.py::test_what_cannot_be_used",
            "tokenize/test_hostile_tokenizers.py::test_holes_are_borne_up_to_a_bound",
            "tokenize/test_hostile_tokenizers.py::test_what_is_no_file_or_a_huge_one_is_not_read",
            "tokenize/test_hostile_tokenizers.py::"
            "test_an_expression_that_takes_for_ever_is_given_up",
            "tokenize/test_encoder.py::test_what_is_no_tokenizer",
            "tokenize/test_engines.py::test_what_is_no_tokenizer_is_refused",
        ],
    ),
    25: (
        "ids that a type does not hold: 65535, 65536, beyond the vocabulary",
        [
            "tokenize/test_encoder.py::test_the_greatest_id_fits",
            "tokenize/test_stage.py::test_the_type_of_tokens_follows_the_vocabulary",
            "tokenize/test_verdicts.py::test_ids_out_of_range_are_noticed",
            "store/test_shard.py::test_the_type_of_tokens",
            "writers/test_limits.py::test_nanogpt_refuses_ids_over_uint16_before_anything_is_built",
        ],
    ),
    26: (
        "counts that 32 bits do not hold",
        [
            "store/test_shard.py::test_a_shard_of_more_tokens_than_2_to_the_31",
            "store/test_shard.py::test_a_domain_of_more_tokens_than_2_to_the_32",
            "store/test_shard.py::test_documents_come_back",
            "rows/test_stream.py::"
            "test_rows_far_ahead_are_found_without_laying_out_the_epochs_before",
            "writers/test_limits.py::test_a_format_refuses_what_it_cannot_hold",
        ],
    ),
    29: (
        "a domain twice, a file twice, globs that overlap",
        [
            "tokenize/test_inputs.py::test_a_file_under_two_names_is_counted_once",
            "tokenize/test_reuse.py::test_equal_files_are_each_counted",
            "test_strict_yaml.py::test_a_key_that_stands_twice",
            "test_wrong_inputs.py::test_what_the_user_reads",
        ],
    ),
    30: (
        "nothing: an empty recipe, folder, file or table; bad records alone",
        [
            "recipe/test_mistakes.py::test_an_empty_recipe_lacks_every_required_key",
            "readers/test_parquet.py::test_no_rows",
            "readers/test_conformance.py::test_a_table_cut_anywhere_is_an_error",
            "tokenize/test_rules.py::test_empty_files_pass_only_if_allowed",
            "test_wrong_inputs.py::test_what_the_user_reads",
        ],
    ),
    31: (
        "workers, sizes of blocks, hash seed, locale, time zone, folder and umask vary",
        [
            "build/test_reproducible.py::test_the_surroundings_change_nothing",
            "build/test_reproducible.py::test_any_number_of_workers_writes_the_same_bytes",
            "tokenize/test_stage.py::test_the_number_of_workers_makes_no_difference",
            "tokenize/test_parts.py::"
            "test_the_sizes_of_what_is_read_and_encoded_at_once_change_no_byte",
            "tokenize/test_check.py::test_batches_do_not_matter",
        ],
    ),
    33: (
        "a store of an older or a future version",
        [
            "store/test_hostile_manifests.py::"
            "test_a_store_of_another_version_is_named_and_not_read",
            "store/test_hostile_manifests.py::"
            "test_a_mixture_of_another_version_is_named_and_not_read",
            "store/test_hashes.py::test_no_manifest_and_one_of_another_version",
        ],
    ),
}

# number -> why it is not a fault of reading or of the store
ELSEWHERE = {
    27: "a proxy that diverges belongs to solving: proxy/test_train.py",
    28: "weights and counts belong to building: build/test_counts.py",
    32: "other versions of libraries are installed by CI, not by a test",
}


def functions(path):
    """The names of the test functions of a file, also of those in classes."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def test_every_fault_stands_in_the_table():
    assert sorted([*FAULTS, *ELSEWHERE]) == list(range(1, 34))
    assert all(reason for reason in ELSEWHERE.values())


@pytest.mark.parametrize("number", FAULTS)
def test_every_fault_has_its_tests(number):
    what, tests = FAULTS[number]
    assert what
    assert len(set(tests)) == len(tests) > 0
    for test in tests:
        path, _, name = test.partition("::")
        assert name.startswith("test_")
        assert name in functions(ROOT / path), test
