//! Wrappers around a [`Disk`] or [`DiskFile`]: a call that the wrapper does not define is forwarded.
//!
//! They are used to count bytes, and to inject faults in tests. Every method is forwarded here, so that
//! a wrapper never falls back to a default of [`Disk`] or [`DiskFile`] by mistake.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{Disk, DiskDir, DiskFile, FileStat, Identity};

macro_rules! passed_on {
    ($(fn $name:ident(&self $(, $arg:ident: $type:ty)*) $(-> $result:ty)?;)*) => {
        $(
            #[doc = concat!("Forwards to `", stringify!($name), "` of the wrapped object.")]
            fn $name(&self $(, $arg: $type)*) $(-> $result)? {
                self.below().$name($($arg),*)
            }
        )*
    };
}

macro_rules! implemented {
    ($layer:ident: $(fn $name:ident(&self $(, $arg:ident: $type:ty)*) $(-> $result:ty)?;)*) => {
        $(
            fn $name(&self $(, $arg: $type)*) $(-> $result)? {
                $layer::$name(self $(, $arg)*)
            }
        )*
    };
}

macro_rules! disk_calls {
    ($with:ident!($($prefix:tt)*)) => {
        $with! { $($prefix)*
            fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
            fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
            fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
            fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;
            fn rename_over(&self, from: &Path, to: &Path) -> io::Result<()>;
            fn remove(&self, path: &Path) -> io::Result<()>;
            fn open_dir(&self, dir: &Path) -> io::Result<Box<dyn DiskDir>>;
            fn create_dir(&self, dir: &Path) -> io::Result<()>;
            fn list(&self, dir: &Path) -> io::Result<Vec<(String, bool)>>;
            fn identity(&self, path: &Path) -> io::Result<Option<Identity>>;
            fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
            fn capacity_bytes(&self, dir: &Path) -> io::Result<u64>;
            fn free_files(&self, dir: &Path) -> io::Result<Option<u64>>;
            fn count_again(&self);
            fn sync_file_system(&self, dir: &Path) -> io::Result<bool>;
            fn size_at(&self, path: &Path) -> io::Result<u64>;
            fn used_bytes(&self, dir: &Path) -> io::Result<u64>;
        }
    };
}

macro_rules! file_calls {
    ($with:ident!($($prefix:tt)*)) => {
        $with! { $($prefix)*
            fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
            fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
            fn sync_data(&self) -> io::Result<()>;
            fn set_len(&self, len: u64) -> io::Result<()>;
            fn stat(&self) -> io::Result<FileStat>;
            fn release_cache(&self, to: u64);
            fn try_lock(&self) -> io::Result<bool>;
            fn unlock(&self);
        }
    };
}

/// A [`Disk`] that wraps another one. `sync_dir` calls `open_dir` of the wrapper.
pub trait DiskLayer: Send + Sync + 'static {
    /// The disk that handles what the layer does not.
    fn below(&self) -> &dyn Disk;

    disk_calls!(passed_on!());
}

impl<L: DiskLayer> Disk for L {
    disk_calls!(implemented!(DiskLayer:));
}

/// A [`DiskFile`] that wraps another one. `size` calls `stat` of the wrapper.
pub trait FileLayer: Send + Sync + 'static {
    /// The file that handles what the layer does not.
    fn below(&self) -> &dyn DiskFile;

    file_calls!(passed_on!());
}

impl<L: FileLayer> DiskFile for L {
    file_calls!(implemented!(FileLayer:));
}
