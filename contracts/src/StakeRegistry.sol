// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

import {OctoA} from "./OctoA.sol";
import {NetworkDomain} from "./base/NetworkDomain.sol";
import {IStakeRegistry} from "./interfaces/IStakeRegistry.sol";
import {Permits} from "./libraries/Permits.sol";
import {Receipts} from "./libraries/Receipts.sol";
import {Stakes} from "./libraries/Stakes.sol";
import {TypedData} from "./libraries/TypedData.sol";

/// @title The stake registry: see IStakeRegistry
/// @dev State is written and logged before tokens move, and the token is OCTO-A, which calls nobody: no lock is needed.
contract StakeRegistry is IStakeRegistry, NetworkDomain {
    using Receipts for Receipt;
    using SafeERC20 for OctoA;
    using Stakes for Stake;

    /// @inheritdoc IStakeRegistry
    uint48 public constant override UNBONDING_PERIOD = 7 days;
    /// @inheritdoc IStakeRegistry
    uint256 public constant override SLASH_BPS = 5_000;
    /// @inheritdoc IStakeRegistry
    uint256 public constant override REPORTER_BPS = 1_000;

    OctoA private immutable _token;
    mapping(address staker => Stake) private _stakes;
    mapping(address staker => Identity) private _identities;
    mapping(address receiptSigner => SignerRecord) private _signers;
    mapping(bytes32 fault => bool) private _slashed;

    /// @param network the network's name; its salt is part of what receipt signers sign
    constructor(OctoA token_, string memory network) NetworkDomain(network) {
        _token = token_;
    }

    /// @inheritdoc IStakeRegistry
    function token() external view override returns (address) {
        return address(_token);
    }

    /// @inheritdoc IStakeRegistry
    function minimumOf(Tier tier) external pure override returns (uint256) {
        return Stakes.minimumOf(tier);
    }

    /// @inheritdoc IStakeRegistry
    function isActive(address staker, Tier tier) external view override returns (bool) {
        return _stakes[staker].reaches(tier) && _identities[staker].receiptSigner != address(0);
    }

    /// @inheritdoc IStakeRegistry
    function stakeOf(address staker) external view override returns (Stake memory) {
        return _stakes[staker];
    }

    /// @inheritdoc IStakeRegistry
    function identityOf(address staker) external view override returns (Identity memory) {
        return _identities[staker];
    }

    /// @inheritdoc IStakeRegistry
    function signerRecord(address receiptSigner) external view override returns (SignerRecord memory) {
        return _signers[receiptSigner];
    }

    /// @inheritdoc IStakeRegistry
    function isSlashed(bytes32 fault) external view override returns (bool) {
        return _slashed[fault];
    }

    /// @inheritdoc IStakeRegistry
    function receiptDigest(Receipt calldata receipt) external view override returns (bytes32) {
        return receipt.digest(domainSeparator());
    }

    /// @inheritdoc IStakeRegistry
    function bindingDigest(address staker, address receiptSigner, bytes32 peer, uint256 nonce)
        external
        view
        override
        returns (bytes32)
    {
        return Receipts.bindingDigest(domainSeparator(), staker, receiptSigner, peer, nonce);
    }

    /// @inheritdoc IStakeRegistry
    function stake(Tier tier, uint256 amount) external override {
        _stake(tier, amount);
    }

    /// @inheritdoc IStakeRegistry
    function stakeWithPermit(Tier tier, uint256 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s)
        external
        override
    {
        Permits.tryPermit(address(_token), amount, deadline, v, r, s);
        _stake(tier, amount);
    }

    /// @inheritdoc IStakeRegistry
    function topUp(uint256 amount) external override {
        Stake storage held = _stakes[msg.sender];
        if (held.tier == Tier.None) revert NotStaked(held.bonded);
        uint256 bonded = held.add(amount);
        emit Staked(msg.sender, held.tier, amount, bonded);
        _token.safeTransferFrom(msg.sender, address(this), amount);
    }

    /// @inheritdoc IStakeRegistry
    function changeTier(Tier tier) external override {
        emit TierChanged(msg.sender, _stakes[msg.sender].setTier(tier), tier);
    }

    /// @inheritdoc IStakeRegistry
    function bind(address receiptSigner, bytes32 peer, Signature calldata signature) external override {
        if (receiptSigner == address(0) || peer == 0) revert ZeroIdentity();
        SignerRecord memory known = _signers[receiptSigner];
        if (known.staker != msg.sender && _answers(known)) revert SignerTaken(receiptSigner, known.staker);

        Identity storage identity = _identities[msg.sender];
        bytes32 digest = Receipts.bindingDigest(domainSeparator(), msg.sender, receiptSigner, peer, identity.nonce);
        if (TypedData.signerOf(digest, signature.r, signature.vs) != receiptSigner) revert BadSignature();

        address before = identity.receiptSigner;
        if (before != address(0) && before != receiptSigner) {
            uint48 slashableUntil = uint48(block.timestamp) + UNBONDING_PERIOD;
            _signers[before].slashableUntil = slashableUntil;
            emit SignerRotated(msg.sender, before, slashableUntil);
        }
        _signers[receiptSigner] = SignerRecord({staker: msg.sender, slashableUntil: 0});
        identity.receiptSigner = receiptSigner;
        identity.nonce += 1;
        identity.peer = peer;
        emit Bound(msg.sender, receiptSigner, peer);
    }

    /// @inheritdoc IStakeRegistry
    function unstake(uint256 amount) external override {
        uint48 releaseAt = uint48(block.timestamp) + UNBONDING_PERIOD;
        uint256 unbonding = _stakes[msg.sender].unbond(amount, releaseAt);
        emit Unbonding(msg.sender, amount, unbonding, releaseAt);
    }

    /// @inheritdoc IStakeRegistry
    function withdraw() external override returns (uint256 amount) {
        amount = _stakes[msg.sender].release();
        emit Withdrawn(msg.sender, amount);
        _token.safeTransfer(msg.sender, amount);
    }

    /// @inheritdoc IStakeRegistry
    function slashEquivocation(
        Receipt calldata first,
        Signature calldata firstSignature,
        Receipt calldata second,
        Signature calldata secondSignature
    ) external override returns (uint256 reward) {
        address signer = _signerOfBoth(first, firstSignature, second, secondSignature);
        SignerRecord memory record = _signers[signer];
        if (!_answers(record)) revert NotSlashable(signer);
        bytes32 fault = keccak256(abi.encode(signer, first.channel, first.task, first.seq));
        if (_slashed[fault]) revert AlreadySlashed(fault);
        _slashed[fault] = true;

        uint256 amount = _stakes[record.staker].cut(SLASH_BPS);
        if (amount == 0) revert NothingToSlash(record.staker);
        reward = amount * REPORTER_BPS / 10_000;
        emit Slashed(record.staker, msg.sender, fault, amount, reward);
        _token.safeTransfer(msg.sender, reward);
        _token.burn(amount - reward);
    }

    function _stake(Tier tier, uint256 amount) private {
        Stake storage held = _stakes[msg.sender];
        uint256 bonded = held.add(amount);
        Tier before = held.setTier(tier);
        emit Staked(msg.sender, tier, amount, bonded);
        if (before != tier) emit TierChanged(msg.sender, before, tier);
        _token.safeTransferFrom(msg.sender, address(this), amount);
    }

    /// @dev The one key that signed two receipts which contradict each other; reverts if there is none.
    function _signerOfBoth(
        Receipt calldata first,
        Signature calldata firstSignature,
        Receipt calldata second,
        Signature calldata secondSignature
    ) private view returns (address signer) {
        bytes32 separator = domainSeparator();
        bytes32 firstDigest = first.digest(separator);
        bytes32 secondDigest = second.digest(separator);
        if (!Receipts.contradict(first, firstDigest, second, secondDigest)) revert NotEquivocation();
        signer = TypedData.signerOf(firstDigest, firstSignature.r, firstSignature.vs);
        address other = TypedData.signerOf(secondDigest, secondSignature.r, secondSignature.vs);
        if (signer != other) revert DifferentSigners(signer, other);
    }

    /// @dev Whether a stake stands behind this signer: it is bound, or was less than an unbonding period ago.
    function _answers(SignerRecord memory record) private view returns (bool) {
        return record.staker != address(0) && (record.slashableUntil == 0 || block.timestamp < record.slashableUntil);
    }
}
