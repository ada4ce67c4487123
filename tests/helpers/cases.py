"""What people's data does: each situation, and the tests that hold it right. Run as a script it runs them all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

CASES = {
    # images: the right pixels
    "16-bit TIFF, white is zero": ["images/test_deep_pixels.py::test_16_bit_grey_tiff_whichever_end_is_white"],
    "16-bit planar TIFF": [
        "images/test_deep_pixels.py::test_16_bit_planar_tiff",
        "images/test_deep_pixels.py::test_planar_kinds_that_would_come_out_as_garbage_are_refused",
    ],
    "cICP and nclx": [
        "images/test_color_spaces.py::test_cicp_is_converted",
        "images/test_color_spaces.py::test_what_a_png_says_first_counts",
        "images/test_color_spaces.py::test_nclx_of_an_avif_is_converted_unless_it_has_a_profile",
    ],
    "HDR": ["images/test_color_spaces.py::test_high_dynamic_range_and_unknown_spaces_are_unsupported"],
    "gAMA and cHRM": ["images/test_color_spaces.py::test_gamma_and_chromaticities"],
    "Adobe RGB by EXIF alone": ["images/test_color_spaces.py::test_adobe_rgb_by_exif_alone"],
    "PNG with 3 MB of text": [
        "images/test_png_files.py::test_texts_are_passed_over_wherever_they_stand",
        "images/test_png_files.py::test_a_text_that_inflates_a_thousandfold_costs_no_memory",
    ],
    "16-bit transparent colour": [
        "images/test_deep_pixels.py::test_a_transparent_colour_of_16_bits_counts_with_all_of_them"
    ],
    "first frame smaller than the canvas": [
        "images/test_deep_pixels.py::test_a_first_frame_smaller_than_the_canvas_lies_on_white"
    ],
    "orientation behind the pixels": [
        "images/test_png_files.py::test_orientation_counts_in_front_of_the_pixels_and_behind_them",
        "encode/test_sizes_and_kinds.py::test_the_dry_run_turns_what_the_encode_turns",
    ],
    "kinds not read": [
        "images/test_unread_kinds.py::test_tiffs_of_kinds_that_are_not_read",
        "images/test_unread_kinds.py::test_jpegs_of_kinds_that_are_not_read",
    ],
    "HEIC and JPEG XL": [
        "images/test_unread_kinds.py::test_heic_is_read",
        "images/test_unread_kinds.py::test_jpeg_xl_is_read",
        "images/test_unread_kinds.py::test_without_its_extra_a_kind_is_refused_and_the_extra_named",
    ],
    "other suffixes": ["encode/test_sizes_and_kinds.py::test_kinds_of_the_extras_are_found_in_a_folder_and_encoded"],
    "CMYK without a profile": ["images/test_formats.py::test_cmyk_without_a_profile"],
    "a tail of zeros": [
        "images/test_unread_kinds.py::test_an_unfinished_download_is_skipped_as_truncated",
        "images/test_png_files.py::test_an_unfinished_download_is_truncated_however_it_ends",
    ],
    # captions, labels, metadata
    "captions beside images": [
        "sources/test_captions.py::test_captions_beside_images_are_read_however_they_are_called"
    ],
    "metadata rows that match no image": [
        "sources/test_captions.py::test_rows_find_their_image_however_it_is_written",
        "sources/test_captions.py::test_rows_that_match_nothing_are_counted_and_the_first_is_named",
    ],
    "a column that is nowhere": [
        "sources/test_captions.py::test_a_field_that_is_nowhere_is_an_error_that_names_those_there_are",
        "sources/test_tar_members.py::test_a_field_that_is_nowhere_is_an_error_that_names_those_there_are",
    ],
    "a text and a field": [
        "sources/test_captions.py::test_the_field_that_was_named_is_the_caption_and_the_text_is_kept",
        "sources/test_tar_members.py::test_the_named_field_goes_before_the_text_and_nothing_is_lost",
    ],
    "a webdataset saved as a dataset": [
        "sources/test_recognition.py::test_columns_of_a_saved_webdataset_give_what_the_tar_gives",
        "sources/test_recognition.py::test_fields_within_columns_can_be_named",
    ],
    "metadata of other tools": [
        "sources/test_captions.py::test_a_metadata_parquet_and_lists_and_texts_in_json",
        "sources/test_captions.py::test_metadata_of_kohya_and_of_edm2",
        "sources/test_captions.py::test_a_class_index_stands_beside_the_class_name",
    ],
    "several captions of one image": [
        "sources/test_captions.py::test_two_rows_of_one_image_give_a_list_of_captions",
        "sources/test_tables.py::test_an_image_that_several_rows_name_is_one_sample_with_all_captions",
    ],
    "a caption that was edited": [
        "encode/test_notes.py::test_captions_edited_added_and_removed_are_taken_up",
        "encode/test_notes.py::test_a_neighbour_that_changes_does_not_mix_old_and_new",
    ],
    "captions that are not UTF-8": [
        "sources/test_captions.py::test_a_caption_is_decoded_where_that_is_sure_and_its_bytes_are_kept_where_not",
        "sources/test_captions.py::test_an_encoding_that_was_named_is_used_where_it_is_needed",
    ],
    "CSV that does not fit": [
        "sources/test_tables.py::test_rows_that_do_not_fit_are_named_by_their_line",
        "sources/test_tables.py::test_the_delimiter_is_found",
    ],
    "NaN as a caption": ["sources/test_captions.py::test_a_caption_that_is_not_a_number_is_none"],
    "a bad line": ["sources/test_captions.py::test_a_bad_line_of_a_metadata_file_is_named_before_anything_is_read"],
    # sources
    "splits by file name": [
        "sources/test_recognition.py::test_splits_are_told_by_file_names",
        "encode/test_ledger.py::test_an_option_without_effect_is_refused_before_any_work",
    ],
    "images beside tables": ["sources/test_recognition.py::test_images_go_before_tables_beside_them"],
    "a local image of a table that is replaced": [
        "encode/test_notes.py::test_a_local_image_of_a_table_that_is_replaced_is_encoded_again"
    ],
    "same size and same time": [
        "encode/test_notes.py::test_an_image_that_changed_without_a_sign_is_found_when_asked_for"
    ],
    "parquet of URLs": ["sources/test_tables.py::test_parquet_files_of_urls_are_fetched"],
    "URLs that misbehave": [
        "sources/test_downloads.py::test_bytes_and_time_are_limited",
        "sources/test_downloads.py::test_what_is_final_is_asked_once",
        "sources/test_downloads.py::test_retry_after_is_obeyed_by_all_and_never_beyond_the_limit",
    ],
    "every tar restarts its keys": [
        "sources/test_tar_members.py::test_tars_that_begin_their_keys_anew_are_found_before_anything_is_read",
        "system/test_advice.py::test_tars_that_begin_their_keys_anew",
    ],
    "dots in tar keys": [
        "sources/test_tar_members.py::test_dots_in_keys_are_found",
        "sources/test_tar_members.py::test_which_dot_ends_a_key_can_be_said",
    ],
    "members of tars": [
        "sources/test_tar_members.py::test_what_macos_packs_beside_files_is_no_sample",
        "sources/test_tar_members.py::test_links_are_followed_within_the_tar",
        "system/test_advice.py::test_members_that_do_not_stand_together",
        "system/test_advice.py::test_two_images_in_one_sample",
    ],
    "zstandard and tars one behind the other": [
        "sources/test_tar_members.py::test_zstandard_is_read",
        "sources/test_tar_members.py::test_tars_one_behind_the_other_are_all_read",
    ],
    "a cloned repository, tars in folders": [
        "sources/test_recognition.py::test_a_repository_that_was_cloned_is_a_dataset",
        "sources/test_recognition.py::test_tars_in_a_folder_and_below_it",
    ],
    "a remote output": ["encode/test_ledger.py::test_a_remote_output_is_refused_before_any_work"],
    "every sample skipped": ["encode/test_pipeline.py::test_a_source_where_nothing_can_be_used_fails_and_says_why"],
    "an unfinished cache": ["reader/test_dataset.py::test_a_cache_that_lacks_parts_is_refused_unless_allowed"],
    "a time in the year 2300": [
        "system/test_cases.py::test_a_time_in_the_year_2300",
        "sources/test_tar_members.py::test_a_time_beyond_64_bits_is_taken_for_the_last_that_fits",
    ],
    "a bucket one cell wide": ["encode/test_sizes_and_kinds.py::test_images_one_latent_cell_wide_are_encoded"],
    "own sizes": ["encode/test_sizes_and_kinds.py::test_own_sizes_are_the_only_ones"],
    "latents beyond 1,000": [
        "encode/test_pipeline.py::test_latents_that_are_finite_but_absurd_are_out_of_range_and_their_size_is_said"
    ],
}
NODES = sorted({node for nodes in CASES.values() for node in nodes})


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", *(str(TESTS / node) for node in NODES)]))
