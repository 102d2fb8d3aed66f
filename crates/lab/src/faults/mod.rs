//! Which faults can be put into a site, and which cause does each show?
