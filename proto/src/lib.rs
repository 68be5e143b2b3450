//! Protobuf messages and gRPC services, generated at build time. Nothing is written by hand here.

/// The management API of a node (`proto/admin.proto`).
pub mod admin {
    pub mod v1 {
        #![expect(
            clippy::allow_attributes,
            clippy::allow_attributes_without_reason,
            reason = "generated code"
        )]
        tonic::include_proto!("sbc.admin.v1");
    }
}

/// Records of the SBC in the replicated tables (`proto/record.proto`).
pub mod record {
    pub mod v1 {
        tonic::include_proto!("sbc.record.v1");
    }
}

/// What cluster nodes say to each other and keep (`proto/cluster.proto`).
pub mod cluster {
    pub mod v1 {
        #![expect(
            clippy::allow_attributes,
            clippy::allow_attributes_without_reason,
            reason = "generated code"
        )]
        tonic::include_proto!("sbc.cluster.v1");
    }
}

/// Descriptors of every service, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
