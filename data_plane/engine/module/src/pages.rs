//! The pages that a run is expected to write, as whoever built the module found out: a custom section of it.
//!
//! A hint about time and nothing else. It is the module's own, so it is signed with it and the same in every run.

use std::ops::Range;

/// The custom section's name.
pub const SECTION: &str = "agentfactory.pages";
/// Of memory, whatever the machine's own pages are.
pub const PAGE_BYTES: u64 = 4096;
/// Largest number of pages: 16 MiB, many times what a saved interpreter writes.
pub const MAX_PAGES: usize = 4096;

const NUMBER_BYTES: usize = size_of::<u32>();

/// Read the section: page numbers of four bytes, the least significant first, each larger than the one before. Returns
/// ranges of bytes, neighbours together.
///
/// # Errors
/// Says which rule is broken.
pub fn parse(data: &[u8], memory_bytes: u64) -> Result<Vec<Range<u64>>, String> {
    let (numbers, rest) = data.as_chunks::<NUMBER_BYTES>();
    if !rest.is_empty() {
        return Err(format!("section {SECTION} ends within a number"));
    }
    if numbers.len() > MAX_PAGES {
        return Err(format!(
            "section {SECTION} has {} pages, the bound is {MAX_PAGES}",
            numbers.len()
        ));
    }
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for number in numbers {
        let start = u64::from(u32::from_le_bytes(*number)) * PAGE_BYTES;
        let end = start + PAGE_BYTES;
        if end > memory_bytes {
            return Err(format!(
                "section {SECTION} names a page at {start}, the memory begins with {memory_bytes} bytes"
            ));
        }
        match ranges.last_mut() {
            Some(last) if start < last.end => {
                return Err(format!("section {SECTION} names pages that do not ascend"));
            }
            Some(last) if start == last.end => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(pages: &[u32]) -> Vec<u8> {
        pages.iter().flat_map(|page| page.to_le_bytes()).collect()
    }

    fn parsed(pages: &[u32]) -> Result<Vec<Range<u64>>, String> {
        parse(&section(pages), 16 * PAGE_BYTES)
    }

    #[test]
    fn neighbours_are_one_range() {
        let ranges = parsed(&[0, 1, 2, 5, 14, 15]).unwrap();
        assert_eq!(ranges, [0..12288, 20480..24576, 57344..65536]);
        assert_eq!(parsed(&[]).unwrap(), []);
    }

    #[test]
    fn a_page_that_the_memory_does_not_begin_with_is_refused() {
        assert!(parsed(&[15]).is_ok());
        assert!(parsed(&[16]).is_err());
        assert!(parsed(&[u32::MAX]).is_err());
        assert!(parse(&section(&[0]), 0).is_err());
    }

    #[test]
    fn pages_twice_or_backwards_are_refused() {
        assert!(parsed(&[3, 3]).is_err());
        assert!(parsed(&[3, 4, 2]).is_err());
    }

    #[test]
    fn a_number_that_is_cut_is_refused() {
        assert!(parse(&section(&[1, 2])[..7], 1 << 20).is_err());
    }

    #[test]
    fn the_number_of_pages_is_bounded() {
        let pages: Vec<u32> = (0..=4096).collect();
        assert!(parse(&section(&pages[..4096]), 1 << 30).is_ok());
        assert!(parse(&section(&pages), 1 << 30).is_err());
    }
}
