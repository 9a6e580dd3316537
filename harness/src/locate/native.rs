//! Lines of native programs: their stacks are unwound by the tables that compilers make for exceptions,
//! or by frame pointers, and addresses are looked up in the debug information, if there is any.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use addr2line::Loader;
use framehop::{
    CacheNative, ExplicitModuleSectionInfo, FrameAddress, Module, Unwinder, UnwinderNative,
};
use object::{Object, ObjectSection, ObjectSegment};

use super::{Frame, Mapping, mappings};
use crate::os::ptrace::Stopped;

/// How deep a stack is looked into.
const DEPTH_MAX: usize = 64;

/// The programs and libraries that were met.
#[derive(Default)]
pub struct Unwinding {
    images: HashMap<PathBuf, Option<Rc<Image>>>,
}

/// A program or a library.
struct Image {
    sections: ExplicitModuleSectionInfo<Arc<[u8]>>,
    /// What code of the file is mapped where: offset, length and address of each segment.
    segments: Vec<(u64, u64, u64)>,
    loader: Option<Loader>,
}

impl Image {
    fn read(path: &Path) -> Option<Self> {
        let bytes = std::fs::read(path).ok()?;
        let file = object::File::parse(&*bytes).ok()?;
        let section = |name: &str| file.section_by_name(name);
        let range = |name: &str| section(name).map(|s| s.address()..s.address() + s.size());
        let data =
            |name: &str| section(name)?.uncompressed_data().ok().map(|data| Arc::from(&*data));
        let sections = ExplicitModuleSectionInfo {
            text_svma: range(".text"),
            text: data(".text"),
            got_svma: range(".got"),
            eh_frame_svma: range(".eh_frame"),
            eh_frame: data(".eh_frame"),
            eh_frame_hdr_svma: range(".eh_frame_hdr"),
            eh_frame_hdr: data(".eh_frame_hdr"),
            debug_frame: data(".debug_frame"),
            ..ExplicitModuleSectionInfo::default()
        };
        let segment = |segment: object::Segment<'_, '_>| {
            let (offset, length) = segment.file_range();
            (offset, length, segment.address())
        };
        // Another segment may end in the page of the file in which this one begins.
        let executable = file.segments().filter(|segment| match segment.flags() {
            object::SegmentFlags::Elf { p_flags } => p_flags & object::elf::PF_X != 0,
            _ => true,
        });
        let segments = executable.map(segment).collect();
        Some(Self { sections, segments, loader: Loader::new(path).ok() })
    }

    /// How much higher it lies in memory than its own addresses say.
    fn bias(&self, first: u64, mapping: &Mapping) -> Option<u64> {
        let holds = |(offset, length, _): &&(u64, u64, u64)| {
            // A segment is mapped from the page on that it begins in.
            mapping.offset < offset + length && mapping.offset + (mapping.end - first) > *offset
        };
        let (offset, _, address) = self.segments.iter().find(holds)?;
        Some(first.wrapping_add(*offset).wrapping_sub(mapping.offset).wrapping_sub(*address))
    }
}

/// An image in the memory of a process.
struct Loaded {
    range: std::ops::Range<u64>,
    bias: u64,
    path: PathBuf,
    image: Rc<Image>,
}

impl Unwinding {
    /// The frames of a thread, as far as they are known.
    pub fn look(&mut self, thread: &Stopped) -> Vec<Frame> {
        let Ok(point) = thread.stack_point() else { return Vec::new() };
        let loaded = self.loaded(thread.tid().as_raw());
        let mut unwinder = UnwinderNative::<Arc<[u8]>, _>::new();
        for one in &loaded {
            let name = one.path.display().to_string();
            let sections = one.image.sections.clone();
            unwinder.add_module(Module::new(name, one.range.clone(), one.bias, sections));
        }
        let mut cache = CacheNative::<_>::new();
        let mut read = |address| {
            let bytes = thread.read(address, 8).map_err(drop)?;
            bytes.try_into().map(u64::from_ne_bytes).map_err(drop)
        };
        let mut addresses =
            unwinder.iter_frames(point.pc, point.registers(), &mut cache, &mut read);
        let mut frames = Vec::new();
        for _ in 0..DEPTH_MAX {
            let Ok(Some(address)) = addresses.next() else { break };
            frames.extend(named(&loaded, address));
        }
        frames
    }

    fn loaded(&mut self, tid: i32) -> Vec<Loaded> {
        let executable = mappings(tid).into_iter().filter(|(_, mapping)| mapping.executable);
        let mut loaded = Vec::new();
        for (first, mapping) in executable {
            // As the process sees it, which may have a file system of its own.
            let seen = format!("/proc/{tid}/root{}", mapping.path.display());
            let image = self.images.entry(mapping.path.clone());
            let image = image.or_insert_with(|| Image::read(Path::new(&seen)).map(Rc::new));
            let Some(image) = image.clone() else { continue };
            let Some(bias) = image.bias(first, &mapping) else { continue };
            loaded.push(Loaded { range: first..mapping.end, bias, path: mapping.path, image });
        }
        loaded
    }
}

/// The functions that an address lies in, the innermost of inlined ones first.
fn named(loaded: &[Loaded], address: FrameAddress) -> Vec<Frame> {
    let address = address.address_for_lookup();
    let Some(here) = loaded.iter().find(|one| one.range.contains(&address)) else {
        return Vec::new();
    };
    let Some(loader) = &here.image.loader else { return Vec::new() };
    let probe = address.wrapping_sub(here.bias);
    let symbol = || {
        loader
            .find_symbol(probe)
            .map(|name| addr2line::demangle_auto(name.into(), None).into_owned())
    };
    let mut frames = Vec::new();
    if let Ok(mut found) = loader.find_frames(probe) {
        while let Ok(Some(frame)) = found.next() {
            let Some(place) = frame.location else { continue };
            let (Some(file), Some(line)) = (place.file, place.line) else { continue };
            let name = frame.function.and_then(|name| Some(name.demangle().ok()?.into_owned()));
            let function = name.or_else(symbol).unwrap_or_else(|| "?".to_owned());
            frames.push(Frame { file: file.into(), line: Some(line), function });
        }
    }
    if frames.is_empty() {
        let file = here.path.clone();
        frames.extend(symbol().map(|function| Frame { file, line: None, function }));
    }
    frames
}
